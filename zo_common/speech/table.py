"""Tolerant reading of tables: CSV by comma, semicolon or tab, with empty rows and columns; JSON, in lines or arrays."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

Row = tuple[int, dict[str, Any] | str]
"""Line of the table where a row starts, and its fields or its fault."""

DELIMITERS = ",;\t"
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}
_ARRAY = re.compile(r"\s*\[\s*(?=[{\]]|$)")
_BETWEEN = re.compile(r"\s*,?\s*")
_MOST_LINES = 50  # of a quoted text; an unclosed quote would otherwise extend to the end of the table


def csv_rows(text: str) -> tuple[list[str], list[Row]]:
    r"""Return header and rows of a table (RFC 4180), in which only \n and \r\n end a line.

    The delimiter is the most frequent of `DELIMITERS` in the header. Rows without a value, as spreadsheets leave them
    below the data, are ignored, and so are columns without a name and a value. Wrong quotes make a fault of their line
    alone: the next one is read as a new row.
    """
    lines = _physical(text)
    header: list[str] = []
    rows: list[Row] = []
    delimiter, at = ",", 0
    while at < len(lines):
        if not header and lines[at].strip():
            delimiter = max(DELIMITERS, key=lines[at].count)
        fields, used, fault = _record(lines, at, delimiter, len(header))
        line, at = at + 1, at + used
        if fault:
            rows.append((line, fault))
        elif not any(value.strip() for value in fields):
            continue
        elif not header:
            header = [name.strip() for name in fields]
        else:
            rows.append((line, _named(header, fields, delimiter)))
    while header and not header[-1]:
        header.pop()
    return header, rows


def _physical(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def _record(lines: Sequence[str], at: int, delimiter: str, expected: int) -> tuple[list[str], int, str]:
    """Return fields of the row that starts on a line, its number of lines, and its fault."""
    fault = "a quote that is not closed"
    for count in range(1, min(_MOST_LINES, len(lines) - at) + 1):
        content = "\n".join(lines[at : at + count])
        if count > 1 and content.count('"') % 2:
            continue
        try:
            (fields,) = list(csv.reader([content], delimiter=delimiter, strict=True)) or [[]]
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                continue
            fault = str(error)
            break
        if count > 1 and expected and len(_trimmed(fields, expected)) != expected:
            break  # it ran into other rows
        return fields, count, ""
    return (
        [],
        1,
        (
            f"got a row that is not CSV ({fault}), expected the text in quotes and a quote within it "
            'doubled (""): correct the row.'
        ),
    )


def _trimmed(fields: list[str], expected: int) -> list[str]:
    """Remove empty fields beyond the header's."""
    extra = fields[expected:]
    return fields[:expected] if not any(value.strip() for value in extra) else fields


def _named(header: Sequence[str], fields: list[str], delimiter: str) -> dict[str, Any] | str:
    fields = _trimmed(fields, len(header))
    if len(fields) != len(header):
        expected = f"{len(header)} ({', '.join(name for name in header if name)})"
        remedy = f"put double quotes around a text that contains a {_NAMES[delimiter]}"
        return f"got {len(fields)} fields, expected {expected}: {remedy}."
    return {name: value for name, value in zip(header, fields, strict=True) if name}


def json_rows(text: str) -> tuple[list[str], list[Row]]:
    """Return all keys, and the rows: objects on lines of their own, or the items of one array.

    Only "\n" ends a line: JSON texts may hold other line separators. A fault in an array ends it.
    """
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for line, row in _items(text) if _ARRAY.match(text) else _lines(text):
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
            rows.append((line, row))
        else:
            got = row.fault if isinstance(row, _Unread) else str(row)[:80]
            rows.append((line, f'got {got}, expected an object {{"file_name": ...}}: correct the line.'))
    return list(columns), rows


class _Unread:
    """JSON that cannot be read."""

    def __init__(self, error: Exception) -> None:
        where = f"with a fault at column {error.colno} ({error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        self.fault = f"JSON {where or f'that cannot be read ({str(error)[:80]})'}"


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                yield line, json.loads(content)
            except (ValueError, RecursionError) as error:
                yield line, _Unread(error)


def _items(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the items of the array that a text begins with, and the line on which each starts."""
    decoder = json.JSONDecoder()
    start = _ARRAY.match(text)
    at, line = (start.end() if start else 0), 1
    counted = 0
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, _Unread(error)
            return
        yield line, row
        between = _BETWEEN.match(text, end)
        at = between.end() if between else end
