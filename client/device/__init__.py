"""A device: its engine, its answers to the server, and its checks of what the server asks."""
