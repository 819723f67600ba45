"""The resident worker: a process that keeps a device's engine between messages."""
