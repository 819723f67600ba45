"""Learning measured in one process: zeroth- and first-order methods on the same devices and recordings."""
