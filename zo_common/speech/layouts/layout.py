"""Interface of a layout of recordings; a new one is a module with these names, listed in `LAYOUTS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zo_common.speech.utterance import Source

TRANSCRIPTION = "transcription"
"""The column of transcripts, unless a run's `text-column` names another."""

EXTRA = "'federated-zo-asr[datasets]'"
"""The extra with the packages that read Parquet tables, saved data sets and those of the Hugging Face hub."""


class ListingFault(ValueError):
    """A table that cannot be read at all; the message is a sentence that begins with its name."""


@dataclass(frozen=True)
class Row:
    """One recording of a table, not yet checked.

    Attributes:
        where: file and line, such as "train/metadata.csv:12".
        audio: the recording, or its fault in a sentence.
        fields: all other columns.
        start, seconds: the part of the recording; None for `seconds` means up to its end.
    """

    where: str
    audio: Source | str
    fields: Mapping[str, Any]
    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Listing:
    """The contents of a split's table.

    Attributes:
        name: of its table in messages, such as "train/metadata.csv".
        columns: names of all columns.
        rows: in order; a string is the fault of a line that is no row, file and line first.
        faults: of the whole table; with any, no row is used.
        audio: the column of recordings.
        texts: columns of transcripts if `text-column` is not set; the first present one is used.
        speaker: column of speakers, if it has another name.
        no_text: the fault of a listing without transcripts, if it is not the name of a column.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row | str, ...]
    faults: tuple[str, ...] = ()
    audio: str = "audio"
    texts: tuple[str, ...] = (TRANSCRIPTION,)
    speaker: str = "speaker"
    no_text: str = ""


class Layout(Protocol):
    """A layout, implemented by a module."""

    NAME: str
    """Its usual name."""

    def splits(self, folder: Path) -> dict[str, Path]:
        """Return the paths of the splits in the folder itself, by name; "" if the folder is a split."""

    def tables(self, place: Path) -> Iterable[Path]:
        """Return the files from which a split's listing is read; a change of one may change the listing."""

    def read(self, place: Path) -> Listing:
        """Read the listing of a split.

        Raises:
            ListingFault: the table cannot be read.
            OSError: a file cannot be read.
        """


def short_name(path: Path) -> str:
    """Return folder and file, the name of a table in messages."""
    return f"{path.resolve().parent.name}/{path.name}"


def text_of(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or in UTF-16 with one, as of spreadsheets.

    Raises:
        ListingFault: the file is neither.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ListingFault(
            f"{short_name(path)}:{line}: got bytes that are not UTF-8, expected text: save the table as UTF-8."
        ) from None
