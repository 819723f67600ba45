"""The id of a run at a tracker, kept in the run's folder so that a resumed run continues it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def kept_run_id(output: Path, tracker: str, resumed: bool, make: Callable[[], str]) -> str:
    """Return the id in `<output>/TRACKER-run-id`; a new run, or one without that file, gets a new one there."""
    path = output / f"{tracker}-run-id"
    if resumed and path.exists() and (found := path.read_text().strip()):
        return found
    made = make()
    path.write_text(f"{made}\n")
    return made
