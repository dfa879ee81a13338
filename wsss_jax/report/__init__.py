"""What a person looks at: score tables and figures. No jax, no training code."""
