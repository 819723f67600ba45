"""Survey of a split: speakers, minutes, lengths and scripts of its usable recordings, and its faults."""

from __future__ import annotations

import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from zo_common.speech.audio import FOREIGN_SUFFIXES, SAMPLING_RATE, SUFFIXES, AudioProblem, decode
from zo_common.speech.conversions import counted
from zo_common.speech.manifest import Manifest
from zo_common.speech.utterance import Utterance


@dataclass(frozen=True)
class Lengths:
    """Seconds of the shortest, the median and the longest of some recordings."""

    shortest: float
    median: float
    longest: float


@dataclass(frozen=True)
class Survey:
    """Contents of a split as training would use it.

    Attributes:
        split, layout: name of the split and of its layout.
        utterances: number of usable ones.
        minutes: of speech in them.
        lengths: of them; None if there are none.
        by: the column of the recordings' owners.
        speakers: name → minutes, sorted by name, including those without a usable recording; "" is unknown.
        scripts: of the transcripts' letters, name → share, the most common first.
        problems: one sentence for each fault, file and line first.
        left_out: number of unusable recordings; each may have several problems.
        unlisted: recordings in the folder that no row names, by suffix.
        note: conversions of recordings as they are read.
    """

    split: str
    layout: str
    utterances: int
    minutes: float
    lengths: Lengths | None
    by: str
    speakers: dict[str, float]
    scripts: dict[str, float]
    problems: tuple[str, ...]
    left_out: int
    unlisted: dict[str, int]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def survey(
    manifest: Manifest,
    *,
    split: str,
    layout: str,
    by: str = "speaker",
    folder: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Decode and check every recording of a manifest, as training would, without a model.

    Args:
        folder: searched for recordings that no row names.
        on_progress: called with the recordings done and their total.
    """
    problems = list(manifest.problems)
    seconds: list[float] = []
    columns = [*(row.columns for row in manifest.left_out if row.columns), *(u.columns for u in manifest.utterances)]
    speakers = dict.fromkeys((each.get(by, "") for each in columns), 0.0)
    scripts: Counter[str] = Counter()
    with counted() as changes:
        for done, utterance in enumerate(manifest.utterances, 1):
            try:
                length = len(decode(utterance.audio)) / SAMPLING_RATE
            except AudioProblem as problem:
                problems.append(f"{utterance.where}: {problem}")
            else:
                seconds.append(length)
                speakers[utterance.columns.get(by, "")] += length
                scripts.update(script for letter in utterance.text if (script := script_of(letter)))
            on_progress(done, len(manifest.utterances))
    lengths = Lengths(min(seconds), statistics.median(seconds), max(seconds)) if seconds else None
    return Survey(
        split=split,
        layout=layout,
        utterances=len(seconds),
        minutes=sum(seconds) / 60,
        lengths=lengths,
        by=by,
        speakers={name: speakers[name] / 60 for name in sorted(speakers)},
        scripts={name: count / scripts.total() for name, count in scripts.most_common()},
        problems=tuple(problems),
        left_out=len(manifest.left_out) + len(manifest.utterances) - len(seconds),
        unlisted=_unlisted(folder, manifest.utterances) if folder is not None else {},
        note=changes.note,
    )


@lru_cache(maxsize=4096)
def script_of(character: str) -> str:
    """Return the script of a letter by its Unicode name, such as "Latin" or "Cyrillic"; "" for other characters."""
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "")
    return {"CJK": "Han"}.get(name.split(" ")[0], name.split(" ")[0].split("-")[0].title())


def _unlisted(folder: Path, utterances: Sequence[Utterance]) -> dict[str, int]:
    """Count recordings in a folder that no usable row names, by suffix."""
    listed = {source.resolve() for u in utterances if (source := _file_of(u.source)) is not None}
    found = Counter(
        path.suffix.lower()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES + FOREIGN_SUFFIXES and path.is_file() and path.resolve() not in listed
    )
    return dict(sorted(found.items()))


def _file_of(source: object) -> Path | None:
    """Return the file of a recording, or of the one that it is a part of."""
    inner = getattr(source, "source", source)
    return inner if isinstance(inner, Path) else None
