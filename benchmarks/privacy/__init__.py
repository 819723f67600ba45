"""What privacy costs: error rates by guarantee and number of devices."""
