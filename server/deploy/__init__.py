"""A deployment: its folder, certificates and processes, and the commands of its operator."""
