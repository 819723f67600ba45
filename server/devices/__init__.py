"""Devices as the server sees them: registration, selection, status and reports of suspicious ones."""
