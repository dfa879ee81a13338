"""Patches from slides: where they lie, their quality, and the patients they belong to."""
