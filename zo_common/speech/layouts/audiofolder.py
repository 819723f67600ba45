"""Hugging Face's `audiofolder`: `metadata.csv`, `.jsonl` or `.parquet` beside the recordings it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zo_common.errors import DataError
from zo_common.speech.audio import SUFFIXES, local_audio
from zo_common.speech.layouts.layout import Listing, Row, short_name
from zo_common.speech.layouts.rows import read_rows

NAME = "audiofolder"
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE = "file_name"


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`. Raises DataError if there are several tables."""
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError([f"'{folder}' holds both {names}, expected one of them: delete the other."])
    return {"": found[0]} if found else {}


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return (place,)


def read(place: Path) -> Listing:
    """As `Layout.read`."""
    name = short_name(place)
    columns, rows = read_rows(place)
    faults = []
    if _is_headless(columns):
        first = ", ".join(columns)[:60]
        fault = f"{name} begins with '{first}', expected a header: make file_name,transcription its first line."
        return Listing(name, (), (), (fault,))
    if columns and _FILE not in columns:
        listed = ", ".join(columns)
        faults.append(f"column '{_FILE}' not found in {name}, it has {listed}: rename the column of audio paths.")
    found = tuple(_row(name, place.parent, line, row) for line, row in rows)
    return Listing(name, tuple(columns), found, tuple(faults), audio=_FILE)


def _is_headless(columns: list[str]) -> bool:
    """Return whether the first line is a row, or has separators that are not known, as LJSpeech's table."""
    return any(name.lower().endswith(SUFFIXES) for name in columns) or (len(columns) == 1 and "|" in columns[0])


def _row(name: str, folder: Path, line: int, row: dict[str, Any] | str) -> Row | str:
    if isinstance(row, str):
        return f"{name}:{line}: {row}"
    fields = {key: value for key, value in row.items() if key != _FILE}
    return Row(f"{name}:{line}", local_audio(folder, row.get(_FILE)), fields)
