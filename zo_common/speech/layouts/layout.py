"""What a layout of recordings says of itself; a new one is a module with these names, listed in `LAYOUTS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zo_common.speech.utterance import Source

TRANSCRIPTION = "transcription"
"""The column of transcripts, unless a run's `text-column` names another."""


class ListingFault(ValueError):
    """A table that cannot be read at all; the message is a sentence that begins with its name."""


@dataclass(frozen=True)
class Row:
    """One recording as it is listed, not yet checked.

    Attributes:
        where: file and line, such as "train/metadata.csv:12".
        audio: the recording, or in a sentence why there is none.
        fields: all other columns.
        start, seconds: the part of the recording that is meant; None for `seconds` is up to its end.
    """

    where: str
    audio: Source | str
    fields: Mapping[str, Any]
    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Listing:
    """What a split lists.

    Attributes:
        name: of its table in messages, such as "train/metadata.csv".
        columns: names of all of them.
        rows: in order; a string is what is wrong with a line that is no row, file and line first.
        faults: of the whole table; where there are any, no row is used.
        audio: the column of recordings.
        texts: columns that hold the transcripts where `text-column` is not set, the first that is there.
        speaker: column of speakers where it is not called so.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row | str, ...]
    faults: tuple[str, ...] = ()
    audio: str = "audio"
    texts: tuple[str, ...] = (TRANSCRIPTION,)
    speaker: str = "speaker"


class Layout(Protocol):
    """A layout; modules are such."""

    NAME: str
    """As people call it."""

    def splits(self, folder: Path) -> dict[str, Path]:
        """Where the splits are that this very folder holds, by name; "" where the folder is a split itself."""

    def tables(self, place: Path) -> Iterable[Path]:
        """Files that a split's listing is read from: where one changes, so may the listing."""

    def read(self, place: Path) -> Listing:
        """The listing of a split.

        Raises:
            ListingFault: it cannot be read.
            OSError: of the files.
        """


def short_name(path: Path) -> str:
    """Folder and file, as messages name a table."""
    return f"{path.resolve().parent.name}/{path.name}"


def text_of(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one, as spreadsheets write it.

    Raises:
        ListingFault: it is neither.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ListingFault(
            f"{short_name(path)}:{line}: got bytes that are not UTF-8, expected text: save the table as UTF-8."
        ) from None
