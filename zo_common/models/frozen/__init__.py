"""Weights that are not trained, in the precision that a model is served in."""
