"""Parquet tables, with paths of recordings or recordings in them, which are read at their use."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from zo_common.speech.audio import AudioProblem
from zo_common.speech.layouts.layout import EXTRA, ListingFault, short_name
from zo_common.speech.table import Row


def parquet_rows(path: Path, *, schema_alone: bool = False) -> tuple[list[str], list[Row]]:
    """Return names of the columns, and the rows, counted from 1, with a reader for each recording in the table.

    Raises:
        ListingFault: the file is not Parquet, or the package for it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ListingFault(
            f"{short_name(path)} needs the package pyarrow, which is not installed: run pip install {EXTRA}."
        ) from None
    try:
        file = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
        if schema_alone:
            return columns, []
        audio_columns = [field.name for field in file.schema_arrow if _holds_audio(field.type)]
        other_columns = [name for name in columns if name not in audio_columns]
        rows = (
            file.read(columns=other_columns).to_pylist()
            if other_columns
            else [{} for _ in range(file.metadata.num_rows)]
        )
        groups = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, ValueError, OSError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ListingFault(f"{short_name(path)} is not a Parquet table ({reason}): write it again.") from None
    places = ((group, inner) for group, count in enumerate(groups) for inner in range(count))
    for row, place in zip(rows, places, strict=True):
        row.update((name, HeldAudio(path, name, *place)) for name in audio_columns)
    return columns, list(enumerate(rows, 1))


def is_damaged(path: Path) -> bool:
    """Return whether a file cannot be read as Parquet."""
    try:
        parquet_rows(path, schema_alone=True)
    except ListingFault:
        return True
    return False


def _holds_audio(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind)) and {"bytes", "path"} <= {kind.field(at).name for at in range(kind.num_fields)}


class HeldAudio:
    """A recording in a Parquet table; a call returns its bytes."""

    def __init__(self, path: Path, column: str, group: int, row: int) -> None:
        self._path, self._column, self._group, self._row = path, column, group, row

    def __call__(self) -> bytes:
        """Return the recording. Raises AudioProblem if the table has none, or cannot be read any more."""
        import pyarrow

        try:
            value = _group_of(self._path, self._column, self._group)[self._row].as_py() or {}
            if value.get("bytes"):
                return bytes(value["bytes"])
            if value.get("path"):
                return Path(self._path.parent, str(value["path"])).read_bytes()
        except (pyarrow.ArrowException, OSError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise AudioProblem(f"the recording cannot be read ({reason}): write the table again.") from None
        raise AudioProblem("got no audio, expected bytes or the path of a recording: delete the row.")


@lru_cache(maxsize=1)  # rows are read in order
def _group_of(path: Path, column: str, group: int) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path).read_row_group(group, columns=[column]).column(column)
