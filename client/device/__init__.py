"""A device: its engine, what it answers to the server, and what it refuses."""
