"""Slides as they are on disk: formats, levels, pixels, and the list of what there is."""
