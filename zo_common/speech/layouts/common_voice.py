"""Mozilla Common Voice: `train.tsv`, `dev.tsv` … beside `clips/`, with client_id, path and sentence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zo_common.speech.audio import local_audio
from zo_common.speech.layouts.layout import Listing, ListingFault, Row, short_name, text_of
from zo_common.speech.layouts.rows import first_columns, refuse_twice

NAME = "Common Voice"
_CLIPS = "clips"
_NEEDED = {"client_id", "path", "sentence"}


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`."""
    if not (folder / _CLIPS).is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.glob("*.tsv")) if set(first_columns(path)) >= _NEEDED}


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return (place,)


def read(place: Path) -> Listing:
    """As `Layout.read`. The table has no quoting: a quote is part of its sentence."""
    name = short_name(place)
    lines = text_of(place).replace("\r\n", "\n").split("\n")
    header = [column.strip() for column in lines[0].split("\t")]
    refuse_twice(place, header)
    if not set(header) >= _NEEDED:
        raise ListingFault(f"{name}:1: got {', '.join(header)[:80]}, expected the columns of Common Voice: restore it.")
    rows = tuple(_row(name, place.parent, at, header, line) for at, line in enumerate(lines[1:], 2) if line.strip())
    return Listing(name, tuple(header), rows, audio="path", texts=("sentence",), speaker="client_id")


def _row(name: str, folder: Path, line: int, header: list[str], content: str) -> Row | str:
    values = content.split("\t")
    if len(values) != len(header):
        return f"{name}:{line}: got {len(values)} fields, expected {len(header)}: restore the line."
    fields = dict(zip(header, values, strict=True))
    fields["sentence"] = _unquoted(fields["sentence"])
    clip = fields.pop("path").strip().removeprefix(f"{_CLIPS}/")
    if clip and "." not in clip:  # of the first releases
        clip += ".mp3"
    return Row(f"{name}:{line}", local_audio(folder / _CLIPS, clip, column="path"), fields)


def _unquoted(sentence: str) -> str:
    """Remove CSV's quotes from a sentence that a program quoted because of its inner quotes, which are doubled."""
    inner = sentence[1:-1]
    quoted = len(sentence) > 1 and sentence[0] == sentence[-1] == '"' and '"' in inner
    plain = inner.replace('""', "")
    return inner.replace('""', '"') if quoted and '"' not in plain else sentence
