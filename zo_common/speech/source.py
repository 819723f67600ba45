"""All splits of a source of recordings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zo_common.errors import DataError
from zo_common.speech.layouts import Place, place_of_file, split_places
from zo_common.speech.layouts.layout import TRANSCRIPTION
from zo_common.speech.manifest import find_place, read_manifest
from zo_common.speech.splits import splits_of
from zo_common.speech.utterance import Manifest


@dataclass(frozen=True)
class SplitRead:
    """A split: its name, the name of its layout, its rows, and the folder of its recordings, if there is one."""

    name: str
    layout: str
    manifest: Manifest
    folder: Path | None


def read_splits(
    source: str, split: str = "", text_column: str = TRANSCRIPTION, *, need_text: bool = True
) -> list[SplitRead]:
    """Read one split of a source, or all splits.

    Raises:
        DataError: there is nothing to read.
    """
    path = Path(source).expanduser()
    names = [split] if split else list(splits_of(source, ask_hub=True))
    found = []
    for name in names or [""]:
        manifest = read_manifest(source, split=name or None, text_column=text_column, need_text=need_text)
        place = _place(path, name)
        folder = _folder(place, path) if place is not None else None
        found.append(SplitRead(name or "train", place.layout.NAME if place else "hub", manifest, folder))
    return found


def _place(path: Path, split: str) -> Place | None:
    try:
        if path.is_dir():
            return find_place(path, split or None)
        return place_of_file(path) if path.is_file() else None
    except (DataError, OSError):
        return None


def _folder(place: Place, source: Path) -> Path | None:
    """Return the folder of a split if no other split is in it."""
    folder = place.path if place.path.is_dir() else place.path.parent
    others = [p for p in split_places(folder).values() if p.path != place.path] if folder == source else []
    return None if others else folder
