"""Detection of changes in a folder of recordings since it was last read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from zo_common.errors import DataError
from zo_common.speech.layouts import inner_places, own_places, place_of_file


def stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    """Return name, time of change in ns and size of every table in a folder and in the folders of its splits.

    Empty if the source is neither a folder nor a table, such as a hub id.
    """
    found = set()
    with suppress(OSError, RuntimeError, DataError):
        path = Path(source).expanduser()
        if path.is_dir():
            places = [*own_places(path).values(), *inner_places(path).values()]
        else:
            places = [place for place in (place_of_file(path),) if place is not None and path.is_file()]
        for table in {table for place in places for table in place.layout.tables(place.path)}:
            with suppress(OSError):  # removed meanwhile
                stat = table.stat()
                found.add((str(table), stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))
