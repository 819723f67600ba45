"""Which recordings a device has, and their transcripts: read without decoding any audio."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from zo_common.errors import DataError
from zo_common.models.hub import hub_or_cache
from zo_common.speech.audio import local_audio, stored_audio
from zo_common.speech.table import Row, csv_rows

_FILE = "file_name"
TABLES = ("metadata.csv", "metadata.jsonl")
_TEXT_NAMES = ("transcription", "transcript", "sentence", "text", "normalized_text", "raw_text")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

_Source = Path | bytes | Callable[[], bytes]


@dataclass(frozen=True)
class Utterance:
    """One recording: where it is listed ("train/metadata.csv:12"), where its sound is, text, and other columns.

    `source` is a file, bytes, or what reads the bytes: a manifest that is kept must not hold all recordings.
    """

    where: str
    source: _Source = field(repr=False)
    text: str
    columns: Mapping[str, str]

    @property
    def audio(self) -> Path | bytes:
        """The recording's file or bytes."""
        return self.source if isinstance(self.source, Path | bytes) else self.source()


@dataclass(frozen=True)
class Manifest:
    """The usable rows of a source, and one sentence for each that is not."""

    utterances: tuple[Utterance, ...]
    problems: tuple[str, ...]


@dataclass
class _Collector:
    text_column: str
    problems: list[str]
    need_text: bool
    utterances: list[Utterance] = field(default_factory=list)

    def add(self, where: str, audio: _Source | str, row: dict[str, Any]) -> None:
        """Take the row's utterance, or all that is wrong with it; `audio` is a fault where it is a string."""
        text = row.pop(self.text_column, None)
        if not self.need_text:
            text = None  # whoever has no use for a transcript does not get to see one
        faults = [audio] if isinstance(audio, str) else []
        if not isinstance(text, str | None):
            faults.append(f"got a {self.text_column} of type {type(text).__name__}, expected text: correct the row.")
        elif self.need_text and not (text and text.strip()):
            faults.append(f"got an empty transcript, expected what is said: fill in {self.text_column} or delete it.")
        self.problems.extend(f"{where}: {fault}" for fault in faults)
        if not isinstance(audio, str) and not faults:
            columns = {name: "" if value is None else str(value) for name, value in row.items()}
            self.utterances.append(Utterance(where, audio, text or "", columns))

    def manifest(self, table: str, rows: int) -> Manifest:
        if rows == 0 and not self.problems:
            self.problems.append(f"{table}: got no rows, expected one for each recording: add them or change split.")
        return Manifest(tuple(self.utterances), tuple(self.problems))


def read_manifest(
    source: str, *, split: str | None = None, text_column: str = "transcription", need_text: bool = True
) -> Manifest:
    """Read a folder in `audiofolder` layout, a folder written by `save_to_disk`, or a Hugging Face hub id.

    A folder without splits counts as "train". A source with one split needs no `split`.
    Without `need_text`, rows may lack a transcript, and tables the column of them; those that are there are dropped.
    Raises DataError where there is nothing to read; faults of rows and columns are in `Manifest.problems`.
    """
    try:
        folder = Path(source).expanduser()
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _read_datasets(str(folder), split, text_column, need_text, saved=True)
        if folder.is_dir():
            return _read_table(_find_table(folder, split), text_column, need_text)
        got = "a file" if folder.exists() else "not there"
    except (OSError, RuntimeError) as error:
        raise _fault(f"'{source}' cannot be read ({error}), expected a readable folder: check its rights.") from None
    if got == "a file" or not _HUB_ID.fullmatch(source):
        raise _fault(f"'{source}' is {got}, expected a folder with {' or '.join(TABLES)}: check the path.")
    return _read_datasets(source, split, text_column, need_text, saved=False)


def _fault(message: str) -> DataError:
    return DataError([message])


def _table_in(folder: Path) -> Path | None:
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise _fault(f"'{folder}' holds both {' and '.join(TABLES)}, expected one of them: delete the other.")
    return found[0] if found else None


def _find_table(folder: Path, split: str | None) -> Path:
    own, chosen = _table_in(folder), _table_in(folder / split) if split else None
    if chosen is not None:
        return chosen
    # `datasets` calls a folder without splits "train"; any other split must not silently be the same recordings.
    if own is not None and split in (None, "train", folder.resolve().name):
        return own
    splits = {child.name: table for child in sorted(folder.iterdir()) if child.is_dir() and (table := _table_in(child))}
    if not splits and own is None:
        raise _fault(
            f"'{folder}' has neither {' nor '.join(TABLES)}, in itself or in a folder per split: "
            f"write one with the columns {_FILE} and transcription (Hugging Face's audiofolder layout)."
        )
    return splits[_choose_split(str(folder), split, [*splits] or ["train"])]


def _choose_split(source: str, split: str | None, splits: Sequence[str]) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split in splits:
        return str(split)
    got = "no split was named" if split is None else f"split '{split}' was named"
    raise _fault(f"'{source}' has {', '.join(splits)}, but {got}: name one of these as split.")


def _read_table(path: Path, text_column: str, need_text: bool) -> Manifest:
    table = f"{path.resolve().parent.name}/{path.name}"
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Manifest((), (f"{table}:{line}: got bytes that are not UTF-8, expected text: save the table as UTF-8.",))
    columns, rows = csv_rows(text) if path.suffix == ".csv" else _json_rows(text)
    faults = _column_problems(table, columns, text_column, need_text) if columns else []
    found = _Collector(text_column, faults.copy(), need_text)
    for line, row in rows:
        if isinstance(row, str):
            found.problems.append(f"{table}:{line}: {row}")
        elif not faults:
            found.add(f"{table}:{line}", local_audio(path.parent, row.pop(_FILE, None)), row)
    return found.manifest(table, len(rows))


def _json_rows(text: str) -> tuple[list[str], list[Row]]:
    """All keys that occur, and the rows. Only "\n" ends a line: JSON texts may hold other line separators."""
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            row = f"JSON with a fault at column {error.colno} ({error.msg})"
        except (ValueError, RecursionError) as error:
            row = f"JSON that cannot be read ({str(error)[:80]})"
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
            rows.append((line, row))
        else:
            rows.append((line, f'got {row!s:.80}, expected an object {{"{_FILE}": ...}}: correct the line.'))
    return list(columns), rows


def _column_problems(table: str, columns: Sequence[str], text_column: str, need_text: bool) -> list[str]:
    problems, listed = [], ", ".join(columns)
    if _FILE not in columns:
        problems.append(f"column '{_FILE}' not found in {table}, it has {listed}: rename the column of audio paths.")
    if need_text and text_column not in columns:
        problems.append(_no_text_column(table, [name for name in columns if name != _FILE], listed, text_column))
    return problems


def _no_text_column(table: str, candidates: Sequence[str], listed: str, text_column: str) -> str:
    lower = {name.lower(): name for name in candidates}
    near = difflib.get_close_matches(text_column.lower(), lower, n=1)
    near = near or [name for name in _TEXT_NAMES if name in lower]
    hint = f"did you mean text-column={lower[near[0]]}?" if near else "name that of the transcripts as text-column."
    return f"text column '{text_column}' not found in {table}, it has {listed}: {hint}"


def _read_datasets(source: str, split: str | None, text_column: str, need_text: bool, *, saved: bool) -> Manifest:
    import datasets

    try:
        with hub_or_cache(source):
            loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, split=split)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        if saved:
            raise _fault(f"'{source}' is not what save_to_disk writes ({reason}): save the data set again.") from None
        raise _fault(
            f"'{source}' is neither a folder here nor a data set that the Hugging Face hub gives ({reason}): "
            "correct the name, or download it on a machine with network, save it with save_to_disk and pass that "
            "folder (HF_HUB_OFFLINE=1 uses earlier downloads without waiting for the network)."
        ) from None
    return _read_loaded(loaded, source, split, text_column, need_text)


def _read_loaded(loaded: Any, source: str, split: str | None, text_column: str, need_text: bool) -> Manifest:
    """Rows of a `datasets.Dataset` or `DatasetDict`, counted from 0 as `dataset[row]` does."""
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        split = _choose_split(source, split, list(loaded))
        loaded = loaded[split]
    elif split not in (None, "train", str(loaded.split)):
        _choose_split(source, split, [str(loaded.split or "train")])
    table = f"{Path(source).name}[{split or loaded.split or 'train'}]"
    audio = [name for name, feature in loaded.features.items() if isinstance(feature, datasets.Audio)]
    problems, listed = [], ", ".join(loaded.features)
    if not audio:
        problems.append(f"no Audio column found in {table}, it has {listed}: make one with cast_column(..., Audio()).")
    if need_text and text_column not in loaded.features:
        candidates = [name for name in loaded.features if name not in audio]
        problems.append(_no_text_column(table, candidates, listed, text_column))
    found = _Collector(text_column, problems, need_text)
    if not problems:
        name = "audio" if "audio" in audio else audio[0]
        # Any further column of audio would be decoded on access.
        rows = loaded.remove_columns([other for other in audio if other != name])
        rows = rows.cast_column(name, datasets.Audio(decode=False))
        sounds = rows.select_columns(name)
        for index, row in enumerate(rows):
            sound = stored_audio(row.pop(name))
            lazy = partial(_bytes_of, sounds, index, name) if isinstance(sound, bytes) else sound
            found.add(f"{table} row {index}", lazy, row)
    return found.manifest(table, len(loaded))


def _bytes_of(sounds: Any, index: int, name: str) -> bytes:
    return bytes(sounds[index][name]["bytes"])
