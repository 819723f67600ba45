"""A choice of transcripts before and after adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.report.words import AlignedTranscript, align

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Example:
    """An utterance's reference and its transcripts."""

    where: str
    reference: str
    before: AlignedTranscript
    after: AlignedTranscript

    @property
    def change(self) -> int:
        """Errors after less errors before."""
        return self.after.errors - self.before.errors


def examples(before: Rows, after: Rows, language: str, most: int = 12) -> list[Example]:
    """Return up to `most` utterances whose transcript changed: half with the most errors mended, a quarter with the
    most made, the rest evenly spaced among the others; the most mended first.

    Args:
        before, after: rows as in `changed_words`, with `where`.
    """
    pairs = zip(before, after, strict=True)
    changed = [(first, last) for first, last in pairs if first["hypothesis"] != last["hypothesis"]]
    found = sorted((_example(first, last, language) for first, last in changed), key=lambda each: each.change)
    if len(found) <= most:
        return found
    best, worst = most // 2, most // 4
    middle, wanted = found[best : len(found) - worst], most - best - worst
    spaced = [middle[round((place + 0.5) * len(middle) / wanted - 0.5)] for place in range(wanted)]
    return [*found[:best], *spaced, *found[len(found) - worst :]]


def _example(first: Mapping[str, Any], last: Mapping[str, Any], language: str) -> Example:
    reference = first["reference"]
    aligned = (align(reference, row["hypothesis"], language) for row in (first, last))
    return Example(str(first["where"]), reference, *aligned)
