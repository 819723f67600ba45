"""What was changed of recordings as they were read: sampling rates, and channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Conversions:
    """How many recordings were resampled from which rate in Hz, and averaged from how many channels."""

    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    target: int = 0

    @property
    def note(self) -> str:
        """All of it in one sentence; empty where nothing was changed."""
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
    """Counts what `decode` changes in this block; what came from a cache is not decoded."""
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
