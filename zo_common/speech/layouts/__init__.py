"""Layouts of recordings that are read as they are, recognised by their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zo_common.speech.layouts import audiofolder, bare, common_voice, kaldi, librispeech, nemo, saved
from zo_common.speech.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (saved, audiofolder, common_voice, kaldi, librispeech, nemo, bare)
"""In the order in which they are tried: the particular before the general."""


@dataclass(frozen=True)
class Place:
    """A split: its layout, and where it is."""

    layout: Layout
    path: Path


def own_places(folder: Path) -> dict[str, Place]:
    """Splits that the folder itself holds, of the first layout that it has; "" is the folder as a split itself."""
    for layout in LAYOUTS:
        if found := layout.splits(folder):
            return {name: Place(layout, path) for name, path in found.items()}
    return {}


def inner_places(folder: Path) -> dict[str, Place]:
    """Splits that are folders of their own in a folder."""
    children = (child for child in sorted(folder.iterdir()) if child.is_dir())
    return {child.name: places[""] for child in children if "" in (places := own_places(child))}


def split_places(folder: Path) -> dict[str, Place]:
    """All splits of a folder: those that are folders of their own, else those that it holds itself."""
    inner = inner_places(folder)
    if inner:
        return inner
    own = own_places(folder)
    named = {name: place for name, place in own.items() if name}
    return own if len(named) < 2 else named


def place_of_file(path: Path) -> Place | None:
    """The split of which a file is the table."""
    for layout in LAYOUTS:
        if path in layout.splits(path.parent).values():
            return Place(layout, path)
    return None
