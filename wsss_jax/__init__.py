"""From patch-level labels to whole-slide tissue maps, in JAX."""
