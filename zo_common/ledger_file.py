"""A ledger on disk: create, open with repair of a torn end, append with fsync."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from zo_common.contribution import Record
from zo_common.errors import LedgerError, LedgerTruncated
from zo_common.ledger import (
    Ledger,
    LedgerHeader,
    encode_entry,
    encode_header,
    encode_ledger,
    iter_entries,
    read_header,
)
from zo_common.packing import Reader


def read_ledger(path: Path, *, tolerate_torn: bool = True) -> Ledger:
    """The ledger in a file, never changing it.

    Raises:
        LedgerError: missing, truncated in the header, altered, or of another protocol version. A torn last record,
            as a crash leaves it, is dropped with a warning unless `tolerate_torn` is off.
    """
    return _scan(path, tolerate_torn)[0]


def _scan(path: Path, tolerate_torn: bool) -> tuple[Ledger, bytes, int]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be read ({error.strerror}): check the path") from None
    reader = Reader(data, "ledger")
    header, chain = read_header(reader)
    good = len(data) - reader.remaining
    records: list[Record] = []
    try:
        for record, chain_after in iter_entries(reader, chain):
            records.append(record)
            chain = chain_after
            good = len(data) - reader.remaining
    except LedgerTruncated as error:
        if not tolerate_torn:
            raise
        warnings.warn(f"{path}: {error}; its {len(data) - good} bytes are dropped", stacklevel=3)
    return Ledger(header, tuple(records)), chain, good


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write a whole ledger atomically: a temporary file, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(encode_ledger(ledger))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LedgerFile:
    """The ledger of a run, open for appending. The file is the run: restart = open it and go on with the next round."""

    def __init__(self, path: Path, ledger: Ledger, chain: bytes, size: int) -> None:
        self.path = path
        self.ledger = ledger
        self._chain = chain
        self._size = size

    @classmethod
    def create(cls, path: Path, header: LedgerHeader) -> LedgerFile:
        """A new ledger without rounds.

        Raises:
            LedgerError: the file exists already.
        """
        if path.exists():
            raise LedgerError(f"ledger {path} exists already: resume it, or name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_ledger(path, Ledger(header))
        _, chain = encode_header(header)
        return cls(path, Ledger(header), chain, path.stat().st_size)

    @classmethod
    def open(cls, path: Path) -> LedgerFile:
        """An existing ledger; a torn last record is cut off the file, with a warning.

        Raises:
            LedgerError: as `read_ledger`; then nothing is written.
        """
        ledger, chain, good = _scan(path, tolerate_torn=True)
        if path.stat().st_size != good:
            with path.open("r+b") as file:
                file.truncate(good)
                os.fsync(file.fileno())
        return cls(path, ledger, chain, good)

    def append(self, record: Record) -> None:
        """Add the next round durably: it is on disk when this returns, and not at all if it raises.

        Raises:
            LedgerError: the round is not the next one, or the disk is full.
        """
        if record.server_round != self.ledger.last_round + 1:
            raise LedgerError(f"round {record.server_round} cannot follow round {self.ledger.last_round} in the ledger")
        entry, chain = encode_entry(record, self._chain)
        try:
            with self.path.open("r+b") as file:
                file.seek(self._size)
                file.write(entry)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._cut_back()
            raise LedgerError(
                f"round {record.server_round} could not be written to {self.path} ({error.strerror})"
            ) from None
        self._chain = chain
        self._size += len(entry)
        self.ledger = Ledger(self.ledger.header, (*self.ledger.records, record))

    def _cut_back(self) -> None:
        try:
            os.truncate(self.path, self._size)
        except OSError:
            warnings.warn(
                f"{self.path}: an unfinished record could not be cut off; the next opening does it", stacklevel=3
            )
