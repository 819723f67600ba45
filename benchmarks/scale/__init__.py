"""Many devices: seconds a round, memory, and what grows with their number."""
