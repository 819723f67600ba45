"""A deployment of real processes: its bytes on the wire, and what it stands."""
