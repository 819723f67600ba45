"""Counts of conversions of recordings as they are read: sampling rates, and channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Conversions:
    """Numbers of recordings resampled, by rate in Hz, and averaged, by number of channels."""

    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    target: int = 0

    @property
    def note(self) -> str:
        """All conversions in one sentence; empty if there were none."""
        words = [
            f"{count} of {rate / 1000:g} kHz" + (f" (nothing above {rate / 2000:g} kHz)" if rate < self.target else "")
            for rate, count in sorted(self.rates.items())
        ]
        parts = [f"resampled to {self.target / 1000:g} kHz: {', '.join(words)}"] if words else []
        mixed = ", ".join(f"{count} of {number}" for number, count in sorted(self.channels.items()))
        return "; ".join(["recordings " + part for part in parts + [f"averaged over channels: {mixed}"] * bool(mixed)])


_open: ContextVar[tuple[Conversions, ...]] = ContextVar("conversions", default=())


@contextmanager
def counted() -> Iterator[Conversions]:
    """Count the conversions of `decode` in this block; recordings from a cache are not decoded."""
    found = Conversions()
    token = _open.set((*_open.get(), found))
    try:
        yield found
    finally:
        _open.reset(token)


def changed(rate: int, target: int, channels: int) -> None:
    """Count one recording."""
    for found in _open.get():
        found.target = target
        if rate != target:
            found.rates[rate] += 1
        if channels > 1:
            found.channels[channels] += 1
