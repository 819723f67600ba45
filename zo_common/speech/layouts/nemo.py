"""NeMo's manifests, also written by Lhotse: lines of JSON with audio_filepath, text, and optional offset, duration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zo_common.errors import DataError
from zo_common.speech.audio import stated_audio
from zo_common.speech.layouts.layout import Listing, Row, short_name
from zo_common.speech.layouts.parquet import HeldAudio
from zo_common.speech.layouts.parts import all_parts, beside, first_parts, table_name
from zo_common.speech.layouts.rows import first_columns, read_rows, seconds_of

NAME = "NeMo"
_AUDIO = "audio_filepath"
_NEVER = ("dataset_dict.json", "state.json", "dataset_info.json")


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`: `train_manifest.json` is that of "train", and a single one of any name the folder's."""
    found = [
        path
        for pattern in ("*.json", "*.jsonl")
        for path in first_parts(sorted(folder.glob(pattern)))
        if path.name not in _NEVER and _AUDIO in first_columns(path)
    ]
    return named_by_files(found)


def named_by_files(found: list[Path]) -> dict[str, Path]:
    """Return splits by the names of their tables, without "manifest"; a single table is also the folder's own.

    Raises:
        DataError: two tables have the name of one split.
    """
    named: dict[str, Path] = {}
    for path in found:
        stem = table_name(path)
        other = named.setdefault(stem.replace("manifest", "").strip("_-. ") or stem, path)
        if other != path:
            both = f"both {other.name} and {path.name}"
            raise DataError([f"'{path.parent}' holds {both}, expected one of them: move the other away."])
    return named if len(found) != 1 else {"": found[0], **named}


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return beside(place)


def read(place: Path) -> Listing:
    """As `Layout.read`."""
    return read_table(place, lambda columns: _AUDIO, ("text", "transcription"))


def read_table(place: Path, audio_column: Callable[[Iterable[str]], str], texts: tuple[str, ...]) -> Listing:
    """Read a table in all its parts.

    Args:
        audio_column: returns the column of recordings among a part's columns.
        texts: as in `Listing`.

    Raises:
        ListingFault: a part is missing or malformed.
    """
    columns: dict[str, None] = {}
    listed: list[Row | str] = []
    for part in all_parts(place):
        own, rows = read_rows(part)
        columns.update(dict.fromkeys(own))
        column = audio_column(own)
        listed += [_row(short_name(part), place.parent, column, line, row) for line, row in rows]
    return Listing(short_name(place), tuple(columns), tuple(listed), audio=audio_column(columns), texts=texts)


def _row(name: str, folder: Path, column: str, line: int, row: dict[str, Any] | str) -> Row | str:
    if isinstance(row, str):
        return f"{name}:{line}: {row}"
    value = row.get(column)
    audio = value if isinstance(value, HeldAudio) else stated_audio([folder], value, column=column)
    return _timed_row(f"{name}:{line}", audio, column, row)


def _timed_row(where: str, audio: Any, column: str, row: dict[str, Any]) -> Row:
    """Return a row with the part given by its `offset` and `duration`, in seconds."""
    offset, duration = seconds_of(row.get("offset"), "offset"), seconds_of(row.get("duration"), "duration")
    fields = {key: value for key, value in row.items() if key != column}
    if isinstance(offset, str) or isinstance(duration, str):
        fault = next(str(value) for value in (offset, duration) if isinstance(value, str))
        return Row(where, audio if isinstance(audio, str) else fault, fields)
    # without an offset, a duration is often that of the whole recording, rounded: `Clip` handles this
    return Row(where, audio, fields, offset or 0.0, duration or None)
