"""Cost of privacy: error rates by guarantee and number of devices."""
