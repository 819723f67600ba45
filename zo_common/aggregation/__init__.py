"""Aggregation of the devices' scalars: the mean, and rules that bound an attacker."""
