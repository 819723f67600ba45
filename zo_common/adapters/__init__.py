"""Adapters: ledgers that one resident model takes on and off."""
