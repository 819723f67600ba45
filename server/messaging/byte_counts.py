"""Bytes of messages, counted in two ways."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ByteCounts:
    """Bytes of one direction: our packed payload, and Flower's serialised message content around it."""

    payload: int = 0
    serialised: int = 0

    def add(self, payload: int, serialised: int) -> None:
        """Count one message."""
        self.payload += payload
        self.serialised += serialised
