"""Sums of masked vectors, of which the server sees only the total."""
