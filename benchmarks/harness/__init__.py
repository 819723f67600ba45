"""Shared parts of the benchmarks: workloads, timing, and result rows with machine and versions."""
