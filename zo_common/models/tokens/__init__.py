"""Autoregressive models other than Whisper: their inputs, loss and transcripts."""
