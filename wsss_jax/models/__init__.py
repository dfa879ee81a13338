"""The networks: Flax linen modules and functions of arrays only."""
