"""Random streams: derivation of seeds, and the direction vectors that they define."""
