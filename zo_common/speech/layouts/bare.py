"""A table of any name with a column of recordings, such as `audio` or `path`, as in hub snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zo_common.speech.audio import stated_audio
from zo_common.speech.layouts.layout import TRANSCRIPTION, Listing, Row, short_name
from zo_common.speech.layouts.nemo import named_by_files, timed_row
from zo_common.speech.layouts.parquet import HeldAudio
from zo_common.speech.layouts.rows import first_columns, read_rows

NAME = "a table"
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_AUDIO = ("audio", "path", "audio_path", "audio_filepath", "file_name", "filename", "file", "wav_filename")
_TEXTS = (TRANSCRIPTION, "transcript", "sentence", "text")


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`: `train.csv` is the table of "train", and a single table that of the folder."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return named_by_files([path for path in found if _audio_column(first_columns(path))])


def _audio_column(columns: Iterable[str]) -> str:
    return next((name for name in _AUDIO if name in columns), "")


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return (place,)


def read(place: Path) -> Listing:
    """As `Layout.read`."""
    name = short_name(place)
    columns, rows = read_rows(place)
    column = _audio_column(columns)
    listed = tuple(_row(name, place.parent, column, line, row) for line, row in rows)
    return Listing(name, tuple(columns), listed, audio=column, texts=_TEXTS)


def _row(name: str, folder: Path, column: str, line: int, row: dict[str, Any] | str) -> Row | str:
    if isinstance(row, str):
        return f"{name}:{line}: {row}"
    value = row.get(column)
    audio = value if isinstance(value, HeldAudio) else stated_audio([folder], value, column=column)
    return timed_row(f"{name}:{line}", audio, column, row)
