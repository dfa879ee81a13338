"""Benchmarks of speed, memory and scaling; each module is a command that prints a table."""
