"""Messages between server and devices: what is asked, what is answered, and their bytes."""
