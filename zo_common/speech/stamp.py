"""Whether a folder of recordings has changed since it was last read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_TABLES = ("metadata.csv", "metadata.jsonl", "dataset_dict.json", "state.json", "*/state.json")


def stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change in ns and size of every table in a folder and in the folders of its splits.

    Empty for what is not a folder, such as a hub id.
    """
    found = []
    with suppress(OSError):
        folder = Path(source).expanduser()
        for pattern in _TABLES + tuple(f"*/{name}" for name in _TABLES[:2]):
            for path in folder.glob(pattern):
                with suppress(OSError):  # removed while we look
                    stat = path.stat()
                    found.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))
