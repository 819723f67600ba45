"""Guards of a run: rounds that make the model worse on held-out speech are undone exactly."""
