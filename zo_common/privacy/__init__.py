"""Differential privacy: the mechanism, its accountant and what a run has spent."""
