"""Drawn shapes (labelme, QuPath) to class masks, and masks to shapes."""
