"""From a slide to its map: tissue, tiles, networks, stitching."""
