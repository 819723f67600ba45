"""Costs: time, memory and bytes of steps, replay, messages and secure sums."""
