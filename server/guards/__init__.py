"""Guards of a run: rounds that make the model worse on speech with transcripts are taken back, exactly."""
