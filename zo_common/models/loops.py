"""Repetition loops in transcripts: detection, and the constraint of the decoding that follows."""

from __future__ import annotations

import zlib

MAX_COMPRESSION_RATIO = 2.4  # beyond it a transcript is a loop (Radford et al. 2022, section 4.5)
NO_REPEAT_NGRAM_SIZE = 3  # of the search that follows a loop


def compression_ratio(text: str) -> float:
    """Return bytes of a UTF-8 text over its bytes once compressed, as OpenAI's Whisper takes it; 0 of an empty text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def is_loop(text: str) -> bool:
    """Return whether a transcript repeats itself."""
    return compression_ratio(text) > MAX_COMPRESSION_RATIO
