"""Whole slides: reading, tissue, stitching, and the files a viewer opens."""
