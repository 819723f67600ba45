"""Devices as the server knows them: who takes part, who is asked, who is reported."""
