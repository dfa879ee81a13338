"""Numeric comparison with the PyTorch reference, or with another machine or precision."""
