"""The lattice that trained weights move on: its grid, its state and its fingerprint."""
