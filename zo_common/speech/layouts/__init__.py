"""Supported layouts of recordings, recognised by their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zo_common.speech.layouts import audiofolder, bare, common_voice, kaldi, librispeech, nemo, saved
from zo_common.speech.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (saved, audiofolder, common_voice, kaldi, librispeech, nemo, bare)
"""In the order in which they are tried: the specific before the general."""


@dataclass(frozen=True)
class Place:
    """A split: its layout, and its path."""

    layout: Layout
    path: Path


def own_places(folder: Path) -> dict[str, Place]:
    """Return splits in the folder itself, of its first layout; "" is the folder as a split."""
    for layout in LAYOUTS:
        if found := layout.splits(folder):
            return {name: Place(layout, path) for name, path in found.items()}
    return {}


def inner_places(folder: Path) -> dict[str, Place]:
    """Return splits that are subfolders of a folder."""
    children = (child for child in sorted(folder.iterdir()) if child.is_dir())
    return {child.name: places[""] for child in children if "" in (places := own_places(child))}


def split_places(folder: Path) -> dict[str, Place]:
    """Return all splits of a folder: those in subfolders, else those in the folder itself."""
    inner = inner_places(folder)
    if inner:
        return inner
    own = own_places(folder)
    named = {name: place for name, place in own.items() if name}
    return own if len(named) < 2 else named


def place_of_file(path: Path) -> Place | None:
    """Return the split whose table a file is."""
    for layout in LAYOUTS:
        if path in layout.splits(path.parent).values():
            return Place(layout, path)
    return None
