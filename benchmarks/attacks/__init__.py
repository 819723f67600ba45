"""What an attacker gets from scalars, with each defence and with none: `python -m benchmarks.attacks`."""
