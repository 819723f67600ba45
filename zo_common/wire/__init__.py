"""Messages between server and devices, and their encoding."""
