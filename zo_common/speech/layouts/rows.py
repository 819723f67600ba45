"""Rows of a table in any of the usual formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from zo_common.speech.layouts.layout import text_of
from zo_common.speech.layouts.parquet import parquet_rows
from zo_common.speech.table import Row, csv_rows, json_rows


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return names of the columns, and the rows with their lines (in Parquet, their numbers from 1).

    Raises:
        ListingFault: the file is not in the format of its suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(path)
    return csv_rows(text_of(path)) if suffix in (".csv", ".tsv") else json_rows(text_of(path))


def first_columns(path: Path) -> list[str]:
    """Return names of the columns by the first line alone; empty if it has none or cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            return parquet_rows(path, schema_alone=True)[0]
        with path.open("rb") as file:
            data = file.readline(1 << 20)
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
