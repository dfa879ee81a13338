"""Data sets: their descriptions, files and preparation, and drawn tissue for the demo."""
