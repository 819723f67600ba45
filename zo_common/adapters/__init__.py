"""Adapters: ledgers that one resident model applies and undoes, from disk or from the Hugging Face hub."""
