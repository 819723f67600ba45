"""Test-time adaptation compared: what zeroth- and first-order methods make of unlabelled speech, and what they cost."""
