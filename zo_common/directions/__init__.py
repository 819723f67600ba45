"""Random streams: how seeds follow from one another, and the vectors they stand for."""
