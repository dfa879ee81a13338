"""Tiles, counts and copies of slides and their maps, for pages that show them."""
