"""LibriSpeech: `SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` beside the recordings, whose names are the utterances'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from zo_common.speech.audio import SUFFIXES, local_audio
from zo_common.speech.layouts.layout import TRANSCRIPTION, Listing, ListingFault, Row, text_of

NAME = "LibriSpeech"
_DEPTHS = ("*.trans.txt", "*/*.trans.txt", "*/*/*.trans.txt")  # of a chapter, a speaker, and a split


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`."""
    return {"": folder} if any(next(folder.glob(pattern), None) for pattern in _DEPTHS) else {}


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return sorted(path for pattern in _DEPTHS for path in place.glob(pattern))


def read(place: Path) -> Listing:
    """As `Layout.read`."""
    rows = tuple(row for path in tables(place) for row in _rows(path, str(path.relative_to(place.parent))))
    return Listing(place.resolve().name, (TRANSCRIPTION, "speaker", "chapter"), rows)


def _rows(path: Path, name: str) -> Iterator[Row | str]:
    try:
        lines = text_of(path).split("\n")
    except ListingFault as fault:  # costs one chapter
        yield str(fault)
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            utterance, _, text = line.strip().partition(" ")
            speaker, _, rest = utterance.partition("-")
            fields = {TRANSCRIPTION: text.strip(), "speaker": speaker, "chapter": rest.partition("-")[0]}
            yield Row(f"{name}:{number}", _recording(path.parent, utterance), fields)


def _recording(folder: Path, utterance: str) -> Path | str:
    """Return the utterance's file, FLAC first."""
    first = local_audio(folder, f"{utterance}.flac", column="utterance")
    if isinstance(first, Path):
        return first
    others = (local_audio(folder, f"{utterance}{suffix}") for suffix in SUFFIXES)
    return next((found for found in others if isinstance(found, Path)), first)
