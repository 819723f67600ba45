"""The ledger of a run: its records and file, and the ways back to the weights."""
