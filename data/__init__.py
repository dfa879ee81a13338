"""Data sets: what each one is, its files, its preparation, and tissue drawn for the demo."""
