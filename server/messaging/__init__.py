"""Messages with devices, and what is made of theirs."""
