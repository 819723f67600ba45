"""Whisper: its forward passes, its losses and its transcripts."""
