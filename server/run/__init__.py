"""A run: its state and files, and the model it moves."""
