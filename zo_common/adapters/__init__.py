"""Adapters: ledgers that one resident model takes on and off, found on disk or on the Hugging Face hub."""
