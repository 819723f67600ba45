"""A run seen from outside, by the files that it writes: metrics and a live page."""
