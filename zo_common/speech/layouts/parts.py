"""Tables in parts, as the Hugging Face hub has them: `train-00000-of-00002.parquet` and its other parts are one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from zo_common.speech.layouts.layout import ListingFault, short_name

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")  # name of the table, number from 0, count of the parts


def table_name(path: Path) -> str:
    """Return the name of a table, without its suffix and the number of a part."""
    match = _PART.fullmatch(path.stem)
    return match[1] if match else path.stem


def first_parts(paths: Iterable[Path]) -> list[Path]:
    """Return of each table in parts the first of the paths, and all other paths."""
    first: dict[tuple[str, str], Path] = {}
    for path in paths:
        first.setdefault((table_name(path), path.suffix), path)
    return list(first.values())


def beside(path: Path) -> list[Path]:
    """Return the parts that are there of the table of `path`, sorted; those of other suffixes are other tables."""
    if not _PART.fullmatch(path.stem):
        return [path]
    found = (other for other in path.parent.iterdir() if other.suffix == path.suffix and _PART.fullmatch(other.stem))
    return sorted(other for other in found if table_name(other) == table_name(path))


def all_parts(path: Path) -> list[Path]:
    """Return the files of a table, in order.

    Raises:
        ListingFault: some of its parts are not there.
    """
    found = beside(path)
    places = [match.group(2, 3) for other in found if (match := _PART.fullmatch(other.stem))]
    if [(int(number), int(count)) for number, count in places] != [(at, len(places)) for at in range(len(places))]:
        got = ", ".join(f"{number} of {count}" for number, count in places[:8])
        raise ListingFault(f"{short_name(path)}: got parts {got}, expected each part once: download them again.")
    return found
