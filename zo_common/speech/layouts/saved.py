"""Folders written by `save_to_disk` of `datasets`, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from zo_common.errors import DataError
from zo_common.speech.audio import stored_audio
from zo_common.speech.layouts.layout import EXTRA, Listing, Row

NAME = "save_to_disk"
_DICT, _ONE = "dataset_dict.json", "state.json"


def splits(folder: Path) -> dict[str, Path]:
    """As `Layout.splits`. Raises DataError if the list of splits is damaged."""
    if (folder / _DICT).is_file():
        try:
            names = [str(name) for name in json.loads((folder / _DICT).read_bytes())["splits"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(folder, error) from None
        return {name: folder / name for name in names if Path(name).name == name}
    if not (folder / _ONE).is_file():
        return {}
    try:
        own = json.loads((folder / _ONE).read_bytes()).get("_split")
    except (ValueError, AttributeError, RecursionError):
        own = None  # reading it reports the fault
    return {"": folder} | ({own: folder} if isinstance(own, str) and own else {})


def tables(place: Path) -> Iterable[Path]:
    """As `Layout.tables`."""
    return [path for path in (place.parent / _DICT, place / _ONE) if path.is_file()]


def read(place: Path) -> Listing:
    """As `Layout.read`. Raises DataError for a folder that no release of `datasets` wrote, or without that package."""
    try:
        import datasets
    except ImportError:
        needed = f"'{place}' needs the package datasets, which is not installed: run pip install {EXTRA}."
        raise DataError([needed]) from None
    try:
        loaded = datasets.load_from_disk(str(place))
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise _damaged(place, error) from None
    whole = place.parent if (place.parent / _DICT).is_file() else place
    return listing_of(loaded, f"{whole.name}[{place.name if whole != place else loaded.split or 'train'}]")


def _damaged(folder: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()).rstrip(".")
    return DataError([f"'{folder}' is not what save_to_disk writes ({reason}): save the data set again."])


def listing_of(loaded: Any, name: str) -> Listing:
    """Return rows of a `datasets.Dataset`, counted from 0 as in `dataset[row]`."""
    import datasets

    audio = [column for column, feature in loaded.features.items() if isinstance(feature, datasets.Audio)]
    columns = tuple(loaded.features)
    if not audio:
        fault = (
            f"no Audio column found in {name}, it has {', '.join(columns)}: make one with cast_column(..., Audio())."
        )
        return Listing(name, columns, (), (fault,))
    chosen = "audio" if "audio" in audio else audio[0]
    # Any further column of audio would be decoded on access.
    rows = loaded.remove_columns([other for other in audio if other != chosen])
    rows = rows.cast_column(chosen, datasets.Audio(decode=False))
    sounds = rows.select_columns(chosen)
    listed = tuple(_row(name, index, row, sounds, chosen) for index, row in enumerate(rows))
    return Listing(name, columns, listed, audio=chosen)


def _row(name: str, index: int, row: dict[str, Any], sounds: Any, column: str) -> Row:
    sound = stored_audio(row.pop(column))
    lazy = partial(_bytes_of, sounds, index, column) if isinstance(sound, bytes) else sound
    return Row(f"{name} row {index}", lazy, row)


def _bytes_of(sounds: Any, index: int, column: str) -> bytes:
    return bytes(sounds[index][column]["bytes"])
