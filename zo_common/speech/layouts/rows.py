"""Rows of a table in any of the usual formats."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zo_common.speech.layouts.layout import ListingFault, short_name, text_of
from zo_common.speech.layouts.parquet import parquet_rows
from zo_common.speech.table import Row, csv_rows, json_rows

_HEAD = 1 << 20  # bytes


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return names of the columns, and the rows with their lines (in Parquet, their numbers from 1).

    Raises:
        ListingFault: the file is not in the format of its suffix, or names a column twice.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(path)
    if suffix not in (".csv", ".tsv"):
        return json_rows(text_of(path))
    columns, rows = csv_rows(text_of(path))
    refuse_twice(path, columns)
    return columns, rows


def refuse_twice(path: Path, columns: Sequence[str]) -> None:
    """Raise ListingFault if a table has two columns of one name: only one of them could be used."""
    twice = next((name for name in columns if name and columns.count(name) > 1), "")
    if twice:
        raise ListingFault(f"{short_name(path)}: got column '{twice}' twice, expected it once: rename or delete one.")


def first_columns(path: Path) -> list[str]:
    """Return names of the columns by its beginning alone; empty if it has none or cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            return parquet_rows(path, schema_alone=True)[0]
        with path.open("rb") as file:
            data = file.readline(_HEAD)
            if data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):  # an array, of which one item will do
                data = (data + file.read(_HEAD)).decode(errors="ignore").encode()
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = (data + b"\0" * (len(data) % 2)).decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
    except (OSError, ValueError):
        return []
    return (csv_rows if path.suffix.lower() in (".csv", ".tsv") else json_rows)(text)[0]


def seconds_of(value: Any, name: str) -> float | str | None:
    """Return a time in seconds of a table, None if there is none, or its fault as a sentence."""
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not (math.isfinite(found) and found >= 0):
        return f"got {name} {str(value)[:40]!r}, expected seconds from 0 on: correct it."
    return found
