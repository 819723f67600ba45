"""A table of any name with a column of recordings, such as `audio` or `path`, as in hub snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from zo_common.speech.layouts.layout import TRANSCRIPTION, Listing
from zo_common.speech.layouts.nemo import named_by_files, read_table
from zo_common.speech.layouts.parquet import is_damaged
from zo_common.speech.layouts.parts import beside, first_parts
from zo_common.speech.layouts.rows import first_columns

NAME = "a table"
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_AUDIO = ("audio", "path", "audio_path", "audio_filepath", "file_name", "filename", "file", "wav_filename")
_TEXTS = (TRANSCRIPTION, "transcript", "sentence", "text")


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`: `train.csv` is the table of "train", and a single table that of the folder.

    A table in parts, such as `train-00000-of-00002.parquet`, is named by its first part.
    """
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return named_by_files([path for path in first_parts(found) if _is_table(path)])


def _is_table(path: Path) -> bool:
    """Return whether a file has a column of recordings, or could have one: reading it reports the fault."""
    return bool(_audio_column(first_columns(path))) or (path.suffix.lower() == ".parquet" and is_damaged(path))


def _audio_column(columns: Iterable[str]) -> str:
    return next((name for name in _AUDIO if name in columns), "")


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return beside(place)


def read(place: Path) -> Listing:
    """As `Layout.read`."""
    return read_table(place, _audio_column, _TEXTS)
