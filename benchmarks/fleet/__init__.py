"""A deployment of real processes: its network traffic, and its robustness to faults."""
