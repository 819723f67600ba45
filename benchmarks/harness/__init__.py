"""What all benchmarks share: workloads, timing, and rows with what they were measured on."""
