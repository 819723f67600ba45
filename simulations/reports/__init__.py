"""What a simulation shows: progress, closing table, curves and the machine it ran on."""
