"""A ledger on disk: create, open with repair of a torn end, append and cut with fsync."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from zo_common.binary.durable import write_durably
from zo_common.binary.packing import Reader
from zo_common.errors import LedgerError, LedgerTruncated
from zo_common.ledger.layout import LEDGER_NAME
from zo_common.ledger.ledger import (
    MAX_HEADER,
    Ledger,
    LedgerHeader,
    encode_entry,
    encode_header,
    encode_ledger,
    iter_entries,
    read_header,
)
from zo_common.ledger.record import Record

__all__ = ["LEDGER_NAME", "LedgerFile", "Mark", "ledger_chains", "read_ledger", "read_ledger_header", "write_ledger"]
_FRAME = 1024  # more than the bytes around the header
Mark = tuple[bytes, int]  # the chain value and the size of the file where the header or a round ends


def read_ledger(path: Path, after: int = 0, *, tolerate_torn: bool = True) -> Ledger:
    """Return the ledger in a file, never changing it; its first round must be `after + 1`.

    Raises:
        LedgerError: missing, truncated in the header, or altered. A torn last record, as a crash leaves it, is dropped
            with a warning unless `tolerate_torn` is off.
        ProtocolMismatch: of another protocol version.
    """
    return _scan(path, after, tolerate_torn)[0]


def read_ledger_header(path: Path) -> LedgerHeader:
    """Return the header alone of the ledger in a file, however many rounds follow.

    Raises:
        LedgerError: missing, truncated in the header, or altered there.
        ProtocolMismatch: of another protocol version.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_HEADER + _FRAME)
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be read ({error.strerror}): check the path") from None
    return read_header(Reader(data, "ledger"))[0]


def _scan(path: Path, after: int, tolerate_torn: bool) -> tuple[Ledger, list[Mark]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be read ({error.strerror}): check the path") from None
    reader = Reader(data, "ledger")
    header, chain = read_header(reader)
    marks = [(chain, len(data) - reader.remaining)]
    records: list[Record] = []
    try:
        for record, chain_after in iter_entries(reader, chain, after):
            records.append(record)
            marks.append((chain_after, len(data) - reader.remaining))
    except LedgerTruncated as error:
        if not tolerate_torn:
            raise
        warnings.warn(f"{path}: {error}; its {len(data) - marks[-1][1]} bytes are dropped", stacklevel=3)
    return Ledger(header, tuple(records), after), marks


def write_ledger(path: Path, ledger: Ledger, mode: int | None = None) -> None:
    """Write a whole ledger atomically: a reader finds the old file or the new one; `mode` as in `write_durably`."""
    write_durably(path, encode_ledger(ledger), mode)


def ledger_chains(path: Path) -> list[bytes]:
    """Return the chain value after the header and after each round; raises as `read_ledger`."""
    return [chain for chain, _ in _scan(path, 0, True)[1]]


class LedgerFile:
    """The ledger of a run, open for appending. A restart opens the file and continues with the next round."""

    def __init__(self, path: Path, ledger: Ledger, marks: list[Mark]) -> None:
        self.path = path
        self.ledger = ledger
        self._marks = marks

    @classmethod
    def create(cls, path: Path, header: LedgerHeader, after: int = 0, mode: int | None = None) -> LedgerFile:
        """Create a ledger without rounds; its first will be `after + 1`, `mode` as in `write_durably`.

        Raises:
            LedgerError: the file exists already.
        """
        if path.exists():
            raise LedgerError(f"ledger {path} exists already: resume it, or name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_ledger(path, Ledger(header), mode)
        data, chain = encode_header(header)
        return cls(path, Ledger(header, after=after), [(chain, len(data))])

    @classmethod
    def open(cls, path: Path, after: int = 0) -> LedgerFile:
        """Open an existing ledger whose first round is `after + 1`; a torn last record is cut off, with a warning.

        Raises:
            LedgerError, ProtocolMismatch: as `read_ledger`; then nothing is written.
        """
        ledger, marks = _scan(path, after, tolerate_torn=True)
        if path.stat().st_size != marks[-1][1]:
            with path.open("r+b") as file:
                file.truncate(marks[-1][1])
                os.fsync(file.fileno())
        return cls(path, ledger, marks)

    @property
    def chains(self) -> list[bytes]:
        """The chain value after the header and after each round, in order."""
        return [chain for chain, _ in self._marks]

    def append(self, record: Record) -> None:
        """Add the next round durably: it is on disk when this returns, and not at all if it raises.

        Raises:
            LedgerError: the round is not the next one, or the disk is full.
        """
        self.extend([record])

    def extend(self, records: Sequence[Record]) -> None:
        """Add the next rounds with one write and one fsync: all are on disk when this returns, none if it raises.

        A crash within it leaves the first few of them, and perhaps a torn one that `open` cuts off.

        Raises:
            LedgerError: the rounds are not the next ones, or the disk is full.
            CodecError: a coefficient is not finite.
        """
        if not records:
            return
        entries, marks = self._encode(records)
        first, last = records[0].server_round, records[-1].server_round
        what = f"round {first}" if first == last else f"rounds {first} to {last}"
        size = self._marks[-1][1]
        try:
            with self.path.open("r+b") as file:
                if os.fstat(file.fileno()).st_size < size:
                    raise LedgerError(f"{self.path} was cut short by someone else: open it again")
                file.seek(size)
                file.write(entries)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._cut_back()
            raise LedgerError(f"{what} could not be written to {self.path} ({error.strerror})") from None
        self._marks += marks
        self.ledger = Ledger(self.ledger.header, (*self.ledger.records, *records), self.ledger.after)

    def _encode(self, records: Sequence[Record]) -> tuple[bytes, list[Mark]]:
        expected = self.ledger.last_round
        chain, size = self._marks[-1]
        entries, marks = [], []
        for record in records:
            if record.server_round != expected + 1:
                raise LedgerError(f"round {record.server_round} cannot follow round {expected} in the ledger")
            entry, chain = encode_entry(record, chain)
            size += len(entry)
            entries.append(entry)
            marks.append((chain, size))
            expected += 1
        return b"".join(entries), marks

    def cut(self, server_round: int) -> None:
        """Drop the rounds after `server_round` durably; without any, nothing is touched.

        Raises:
            LedgerError: the round lies before the ledger's first, or the file cannot be written; what `ledger` says
                then is still what the next `extend` follows, though a crash may bring the dropped rounds back.
        """
        if server_round < self.ledger.after:
            raise LedgerError(
                f"a ledger that starts after round {self.ledger.after} cannot be cut at round {server_round}: "
                "create a new one"
            )
        if server_round >= self.ledger.last_round:
            return
        kept = server_round - self.ledger.after
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._marks[kept][1])
                # before the flush: should that fail, a later `extend` must not leave a hole where the rounds were
                del self._marks[kept + 1 :]
                self.ledger = Ledger(self.ledger.header, self.ledger.records[:kept], self.ledger.after)
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(
                f"the rounds after {server_round} could not be cut off {self.path} ({error.strerror})"
            ) from None

    def _cut_back(self) -> None:
        try:
            os.truncate(self.path, self._marks[-1][1])
        except OSError:
            warnings.warn(
                f"{self.path}: an unfinished record could not be cut off; the next opening does it", stacklevel=4
            )
