"""Models for simulations: imported from packages, or trained here."""
