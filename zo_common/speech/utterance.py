"""Utterances of tables, before any audio is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Source = Path | bytes | Callable[[], bytes]
"""A recording: a file, bytes, or a function that reads the bytes, as a manifest must not hold all recordings."""


@dataclass(frozen=True)
class Utterance:
    """One recording: its row ("train/metadata.csv:12"), the source of its audio, its text, and other columns."""

    where: str
    source: Source = field(repr=False)
    text: str
    columns: Mapping[str, str]

    @property
    def audio(self) -> Path | bytes:
        """The recording's file or bytes.

        Raises:
            AudioProblem: it is part of a recording that cannot be read or is too short.
        """
        return self.source if isinstance(self.source, Path | bytes) else self.source()


@dataclass(frozen=True)
class LeftOut:
    """An unusable row: all its faults, and its columns, empty if they cannot be parsed."""

    problems: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The usable rows of a source, and its faults.

    Attributes:
        faults: of the source as a whole, one sentence each.
        left_out: the unusable rows.
    """

    utterances: tuple[Utterance, ...]
    faults: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All faults, one sentence each."""
        return (*self.faults, *(problem for row in self.left_out for problem in row.problems))
