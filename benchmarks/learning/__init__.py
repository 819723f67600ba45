"""Learning measured in one process: what zeroth- and first-order methods make of the same devices and recordings."""
