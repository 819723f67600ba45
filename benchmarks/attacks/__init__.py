"""Privacy attacks on scalars, with each defence and with none: `python -m benchmarks.attacks`."""
