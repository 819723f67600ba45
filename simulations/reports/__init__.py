"""Reports of a simulation: progress, result table, plots and the machine."""
