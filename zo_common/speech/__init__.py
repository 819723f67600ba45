"""Speech with and without transcripts: reading, sharing out, batches and evaluation."""
