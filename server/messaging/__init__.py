"""Messages to and from devices, and the validation of replies."""
