"""Hostile devices: the effect of each attack under each aggregation rule."""
