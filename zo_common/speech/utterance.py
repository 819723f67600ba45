"""Utterances as tables list them, before any audio is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Source = Path | bytes | Callable[[], bytes]
"""A recording: a file, bytes, or what reads the bytes, as a manifest that is kept must not hold all recordings."""


@dataclass(frozen=True)
class Utterance:
    """One recording: where it is listed ("train/metadata.csv:12"), where its sound is, text, and other columns."""

    where: str
    source: Source = field(repr=False)
    text: str
    columns: Mapping[str, str]

    @property
    def audio(self) -> Path | bytes:
        """The recording's file or bytes.

        Raises:
            AudioProblem: it is part of a recording that cannot be read or does not reach so far.
        """
        return self.source if isinstance(self.source, Path | bytes) else self.source()


@dataclass(frozen=True)
class LeftOut:
    """A row that cannot be used: all that is wrong with it, and its columns, empty where they cannot be told apart."""

    problems: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The usable rows of a source, and what is wrong with it.

    Attributes:
        faults: of the source as a whole, one sentence each.
        left_out: the rows that are not usable.
    """

    utterances: tuple[Utterance, ...]
    faults: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is wrong, one sentence each."""
        return (*self.faults, *(problem for row in self.left_out for problem in row.problems))
