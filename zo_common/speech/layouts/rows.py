"""Rows of a table, whichever of the usual formats it is in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from zo_common.speech.layouts.layout import text_of
from zo_common.speech.layouts.parquet import parquet_rows
from zo_common.speech.table import Row, csv_rows, json_rows


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Names of the columns, and the rows with their lines (of Parquet, their numbers from 1 on).

    Raises:
        ListingFault: the file is not in the format that its name says.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(path)
    return csv_rows(text_of(path)) if suffix in (".csv", ".tsv") else json_rows(text_of(path))


def first_columns(path: Path) -> list[str]:
    """Names of the columns by the first line alone, cheaply; empty where it says none or cannot be read."""
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
    """A time in seconds of a table, None where there is none, or in a sentence what is wrong with it."""
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if isinstance(value, bool) or not (math.isfinite(found) and found >= 0):
        return f"got {name} {str(value)[:40]!r}, expected seconds from 0 on: correct it."
    return found
