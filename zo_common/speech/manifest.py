"""Manifest of a device's recordings and their transcripts, read without decoding any audio."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from zo_common.errors import DataError
from zo_common.models.hub import hub_or_cache
from zo_common.speech.clip import Clip
from zo_common.speech.layouts import LAYOUTS, Place, inner_places, own_places, place_of_file
from zo_common.speech.layouts.layout import EXTRA, TRANSCRIPTION, Listing, ListingFault, Row
from zo_common.speech.layouts.saved import listing_of
from zo_common.speech.times import LISTS, timed_parts
from zo_common.speech.utterance import LeftOut, Manifest, Utterance

__all__ = ["Manifest", "Utterance", "read_manifest"]
_TEXT_NAMES = ("transcription", "transcript", "sentence", "text", "normalized_text", "raw_text")
_SEARCHED = 200  # folders, for a remedy
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def read_manifest(
    source: str, *, split: str | None = None, text_column: str = TRANSCRIPTION, need_text: bool = True
) -> Manifest:
    """Read a folder in one of `LAYOUTS`, a table of one, or a Hugging Face hub id.

    A folder without splits counts as "train". A source with one split needs no `split`. If a layout has its own column
    of transcripts, that is used unless `text_column` differs from its default. Without `need_text`, rows may lack a
    transcript, and tables its column; present ones are dropped.
    Raises DataError if there is nothing to read; faults of rows and columns are in `Manifest.problems`.
    """
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _read_place(find_place(path, split), text_column, need_text)
        if path.is_file() and (place := place_of_file(path)):
            return _read_place(place, text_column, need_text)
        got = "a file" if path.exists() else "not there"
    except (OSError, RuntimeError) as error:
        raise _fault(f"'{source}' cannot be read ({error}), expected a readable folder: check its rights.") from None
    if got == "a file" or not _HUB_ID.fullmatch(source):
        raise _fault(
            f"'{source}' is {got}, expected a folder with metadata.csv or metadata.jsonl, or in another layout of "
            f"docs/data.md: check the path."
        )
    return _read_hub(source, split, text_column, need_text)


def _fault(message: str) -> DataError:
    return DataError([message])


def find_place(folder: Path, split: str | None) -> Place:
    """Return the layout and the path of a split of a folder.

    Raises:
        DataError: there is no such split, or no known layout.
    """
    if split and (folder / split).is_dir() and (chosen := own_places(folder / split).get("")):
        return chosen
    own = own_places(folder)
    if split in own:
        return own[split]
    # `datasets` calls a folder without splits "train"; any other split must not silently be the same recordings.
    if "" in own and split in (None, "train", folder.resolve().name):
        return own[""]
    splits = own or inner_places(folder)
    if not splits:
        known = ", ".join(layout.NAME for layout in LAYOUTS)
        raise _fault(
            f"'{folder}' has neither metadata.csv nor metadata.jsonl nor another layout that is known ({known}), in "
            f"itself or in a folder per split: {_remedy(folder)}."
        )
    names = [name for name in splits if name] or ["train"]
    return splits[_choose_split(str(folder), split, names)]


def _remedy(folder: Path) -> str:
    """Return where recordings may be instead: archives and downloads often have further folders around them."""
    inner = (path for pattern in ("*/", "*/*/") for path in sorted(islice(folder.glob(pattern), _SEARCHED)))
    for path in inner:
        if places := own_places(path):
            return f"name its folder '{path}' ({next(iter(places.values())).layout.NAME})"
    return "write a metadata.csv with the columns file_name and transcription"


def _choose_split(source: str, split: str | None, splits: Sequence[str]) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return str(split)
    got = "no split was named" if split is None else f"split '{split}' was named"
    raise _fault(f"'{source}' has {', '.join(splits)}, but {got}: name one of these as split.")


def _read_place(place: Place, text_column: str, need_text: bool) -> Manifest:
    try:
        listing = place.layout.read(place.path)
    except ListingFault as fault:
        return Manifest((), (str(fault),))
    return checked(listing, text_column, need_text)


def checked(listing: Listing, text_column: str, need_text: bool) -> Manifest:
    """Check a listing; return its usable rows, and one sentence for each unusable one."""
    column = _text_column(listing, text_column)
    faults = list(listing.faults)
    if need_text and listing.columns and column not in listing.columns:
        faults.append(listing.no_text or _no_text_column(listing, text_column))
    if not listing.rows and not faults:
        faults.append(f"{listing.name}: got no rows, expected one for each recording: add them or change split.")
    found = _Collector(column, listing.speaker, need_text)
    for row in listing.rows:
        if isinstance(row, str):
            found.left_out.append(LeftOut((row,)))
        elif not faults:
            found.add(row)
    return Manifest(tuple(found.utterances), tuple(faults), tuple(found.left_out))


def _text_column(listing: Listing, asked: str) -> str:
    if asked in listing.columns or asked != TRANSCRIPTION:
        return asked
    return next((name for name in listing.texts if name in listing.columns), asked)


def _no_text_column(listing: Listing, text_column: str) -> str:
    lower = {name.lower(): name for name in listing.columns if name != listing.audio}
    near = difflib.get_close_matches(text_column.lower(), lower, n=1)
    near = near or [name for name in _TEXT_NAMES if name in lower]
    hint = f"did you mean text-column={lower[near[0]]}?" if near else "name that of the transcripts as text-column."
    return f"text column '{text_column}' not found in {listing.name}, it has {', '.join(listing.columns)}: {hint}"


class _Collector:
    """Collector of rows, with the same checks for each layout."""

    def __init__(self, text_column: str, speaker: str, need_text: bool) -> None:
        self._text_column, self._speaker, self._need_text = text_column, speaker, need_text
        self.utterances: list[Utterance] = []
        self.left_out: list[LeftOut] = []

    def add(self, row: Row) -> None:
        """Add the row's utterances, or all its faults."""
        fields = dict(row.fields)
        # objectives without transcripts must not see one
        text = fields.pop(self._text_column, None) if self._need_text else None
        faults = [row.audio] if isinstance(row.audio, str) else []
        parts = timed_parts(fields)
        if isinstance(parts, str):
            faults.append(parts)
        elif not isinstance(text, str | None):
            kind = type(text).__name__
            faults.append(f"got a {self._text_column} of type {kind}, expected text: correct the row.")
        elif self._need_text and not parts and not (text and text.strip()):
            faults.append(
                f"got an empty transcript, expected the spoken text: fill in {self._text_column} or delete it."
            )
        columns = self._columns(fields)
        if faults or isinstance(row.audio, str):
            self.left_out.append(LeftOut(tuple(f"{row.where}: {fault}" for fault in faults), columns))
        elif isinstance(parts, list):
            for part in parts:
                clip = Clip(row.audio, row.start + part.start, part.end - part.start)
                transcript = _composed(part.text) if self._need_text else ""
                self.utterances.append(Utterance(f"{row.where} at {part.start:.2f} s", clip, transcript, columns))
        else:
            whole = row.start == 0 and row.seconds is None
            audio = row.audio if whole else Clip(row.audio, row.start, row.seconds)
            self.utterances.append(Utterance(row.where, audio, _composed(str(text or "")), columns))

    def _columns(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Return values in the form for comparison: stripped, with composed accents."""
        dropped = {self._text_column, *LISTS} if not self._need_text else set(LISTS)
        columns = {
            name: "" if value is None else _composed(str(value)).strip()
            for name, value in fields.items()
            if name not in dropped
        }
        if self._speaker in columns:
            columns.setdefault("speaker", columns[self._speaker])
        return columns


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _read_hub(source: str, split: str | None, text_column: str, need_text: bool) -> Manifest:
    try:
        import datasets
    except ImportError:
        raise _fault(
            f"'{source}' is not a folder here, and a data set of the Hugging Face hub needs the package datasets, "
            f"which is not installed: check the path, or run pip install {EXTRA}."
        ) from None
    try:
        with hub_or_cache(source):
            loaded = datasets.load_dataset(source, split=split)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise _fault(
            f"'{source}' is neither a folder here nor a data set that the Hugging Face hub gives ({reason}): "
            "correct the name, or download it on a machine with network, save it with save_to_disk and pass that "
            "folder (HF_HUB_OFFLINE=1 uses earlier downloads without waiting for the network)."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        split = _choose_split(source, split, list(loaded))
        loaded = loaded[split]
    return checked(
        listing_of(loaded, f"{Path(source).name}[{split or loaded.split or 'train'}]"), text_column, need_text
    )
