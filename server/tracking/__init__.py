"""Reports of a run to experiment trackers."""
