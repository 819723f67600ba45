"""Models that write tokens, but for Whisper: what they are given, their loss and their transcripts."""
