"""From patch-level labels to whole-slide tissue maps, in JAX."""

__version__ = "0.3.0"  # as in pyproject.toml
