"""Speed, memory and scaling; each module is one command that prints a table."""
