"""CTC models: their forward passes, their losses and their transcripts."""
