"""A run: its state, its files, and the server's model."""
