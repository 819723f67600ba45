"""Cache of a benchmark's partial results in a file of JSON lines, from which a stopped run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.run.log import read_rows, write_rows

Outcome = dict[str, Any]


class ResultCache:
    """A cache of results that measures missing ones. Several processes may append to one file.

    Args:
        path: the file; None keeps nothing beyond this process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        rows = read_rows(path) if path is not None and path.exists() else []
        self._known: dict[str, Outcome] = {str(row["key"]): row["outcome"] for row in rows}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.read_bytes().endswith(b"\n"):
                write_rows(path, rows)  # without a line that a crash tore: the next one would be torn with it

    def __call__(self, asked: Any, measure: Callable[[], Outcome]) -> Outcome:
        """Return a result as plain values: from the cache, or measured now and stored."""
        text = json.dumps(asked, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        if key not in self._known:
            self._known[key] = measure()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps({"key": key, "outcome": self._known[key]}) + "\n")
        return self._known[key]
