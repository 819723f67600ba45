"""The state of a device on disk: enough to return to a verified global state after a crash at any moment.

In the state folder, `device.state` has the engine's settings and the round after which the ledger starts,
`snapshot.bin` the state that the device started from if that was not the base, `ledger.zo` the rounds since, and
`answer.bin` the last answer. Files that do not fit together are found at the next start, which then is from the base.
"""

from __future__ import annotations

import fcntl
import json
import logging
import struct
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client.device.engine import Engine
from zo_common.binary.durable import PRIVATE, seal, sync_directory, unseal, write_durably
from zo_common.checked import STRICT, Count, read_json
from zo_common.config.header import header_of
from zo_common.errors import (
    ChecksumMismatch,
    CodecError,
    ConfigError,
    LedgerError,
    ProtocolMismatch,
    WrongBaseModel,
    ZOError,
)
from zo_common.ledger.file import LedgerFile
from zo_common.ledger.ledger import LedgerHeader, describe_tensors
from zo_common.ledger.record import Record, all_updates
from zo_common.ledger.replay import apply_all
from zo_common.wire.plan import Status

logger = logging.getLogger(__name__)

_STATE, _SNAPSHOT, _ANSWER = b"ZOST", b"ZOSN", b"ZOAN"
_VERSION = 1
_ANSWER_VERSION = 2  # those of version 1 may hold what was to be masked
_DIGEST_BYTES = 32
_START = struct.Struct("<IQ")


@dataclass(frozen=True)
class SavedState:
    """`device.state`: run settings of the engine, base model, and where the ledger starts.

    Attributes:
        after: the round before the ledger's first; the snapshot's round, or 0.
        last_round: the round whose state checksum is `checksum`.
    """

    __pydantic_config__ = STRICT
    settings: dict[str, Any]
    fingerprint: str
    after: Count
    last_round: Count
    checksum: Count


class Journal:
    """The state folder of one worker.

    Attributes:
        unsaved: why the present state is not on disk, empty if it is.

    Raises:
        ConfigError: another worker uses the folder, or it cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unsaved = ""
        self._ledger_path = folder / "ledger.zo"
        self._file: LedgerFile | None = None
        self._identity: tuple[object, ...] = ()  # of the engine whose rounds are in the file
        self._start_on_disk = (0, 0)  # round and checksum of snapshot.bin
        self._stated = (0, 0)  # round and checksum in device.state
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
            for path in filter(Path.is_file, folder.iterdir()):
                path.chmod(PRIVATE)  # whatever an earlier release, or a backup, made of it
        except OSError as error:
            raise ConfigError(f"state folder {folder} cannot be written ({error.strerror}): name another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"another worker uses state folder {folder}: stop it, or name another folder") from None

    def close(self) -> None:
        """Release the folder for another worker."""
        self._lock.close()

    def saved(self) -> SavedState | None:
        """Return `device.state`; None if it is missing, or, with a warning, if it cannot be used."""
        try:
            return read_json(SavedState, unseal((self.folder / "device.state").read_bytes(), _STATE, _VERSION))
        except FileNotFoundError:
            return None
        except (OSError, ZOError, ValueError) as error:
            self._start_anew(error)
            return None

    def recover(self, engine: Engine, saved: SavedState) -> None:
        """Move from the base to the newest saved state that can be verified; if there is none, warn and stay there."""
        try:
            self._recover(engine, saved)
        except (OSError, ZOError) as error:
            self._file = None
            self._start_anew(error)
            engine.rebuild()

    def _start_anew(self, error: Exception) -> None:
        logger.warning(f"the state in {self.folder} cannot be used ({error}): starting from the base model")

    def _recover(self, engine: Engine, saved: SavedState) -> None:
        if saved.fingerprint != engine.fingerprint:
            raise WrongBaseModel(f"it is of base model {saved.fingerprint[:16]}, this one is {engine.fingerprint[:16]}")
        if saved.after:
            self._recover_start(engine, saved.after)
        if not self._ledger_path.exists():
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a record torn by a crash is what this is for
            file = LedgerFile.open(self._ledger_path, saved.after)
        if _fixed(file.ledger.header) != _fixed(_header(engine)):
            raise LedgerError("its ledger is of other tensors or another base model")
        records = file.ledger.records
        count, checksum = _verifiable(records, saved)
        apply_all(engine.state, all_updates(records[:count]))
        engine.applied = list(records[:count])
        if count and engine.state.checksum() != checksum:
            raise ChecksumMismatch(f"replay does not reach the checksum {checksum:016x} of round {engine.have_round}")
        if count < len(records):
            logger.warning(f"{len(records) - count} saved rounds after round {engine.have_round} cannot be verified")
        self._file, self._identity = file, _identity(engine)
        self._stated = saved.last_round, saved.checksum

    def _recover_start(self, engine: Engine, after: int) -> None:
        body = unseal((self.folder / "snapshot.bin").read_bytes(), _SNAPSHOT, _VERSION)
        if len(body) < _START.size:
            raise CodecError("its snapshot is too short")
        start, checksum = _START.unpack_from(body)
        if start != after:
            raise LedgerError(f"its snapshot is of round {start}, its ledger starts after round {after}")
        if engine.start_from(body[_START.size :], start, checksum) is not Status.OK:
            raise ChecksumMismatch(f"its snapshot does not reach the checksum {checksum:016x} of round {start}")
        engine.snapshot = None
        self._start_on_disk = start, checksum

    def save(self, engine: Engine) -> None:
        """Save the engine's state, which must be a global one; warn if that fails."""
        try:
            self._save(engine)
        except (OSError, ZOError) as error:
            self._file = self._reopened()
            if not self.unsaved:
                logger.warning(f"the state of round {engine.have_round} is not saved: {error}")
            self.unsaved = f"round {engine.have_round}: {error}"
        else:
            self.unsaved = ""

    def _save(self, engine: Engine) -> None:
        identity = _identity(engine)
        if self._file is None or self._identity != identity:
            self._begin(engine)
            self._identity = identity
        file = self._file
        assert file is not None
        common = _common(file.ledger.records, engine.applied)
        file.cut(engine.start_round + common)
        file.extend(engine.applied[common:])
        if engine.applied and not engine.applied[-1].checksum:
            self._write_state(engine, engine.have_round, engine.state.checksum())

    def _begin(self, engine: Engine) -> None:
        """Start the files of another history, in an order in which no crash can mix two histories.

        Without its ledger, a whole snapshot or the base remains. A new snapshot beside the old `device.state` is found
        by its round or its checksum.
        """
        self._file = None
        self._remove(self._ledger_path)
        start = engine.start_round, engine.start_checksum
        if engine.start_round and engine.snapshot is not None:
            body = _START.pack(*start) + engine.snapshot
            write_durably(self.folder / "snapshot.bin", seal(_SNAPSHOT, _VERSION, body), PRIVATE)
            engine.snapshot, self._start_on_disk = None, start
        if engine.start_round and self._start_on_disk != start:
            raise LedgerError("the snapshot that the device started from is not on disk")
        self._write_state(engine, engine.start_round, engine.start_checksum or engine.base_checksum)
        if not engine.start_round:
            self._remove(self.folder / "snapshot.bin")
            self._start_on_disk = 0, 0
        self._file = LedgerFile.create(self._ledger_path, _header(engine), engine.start_round, PRIVATE)

    def _write_state(self, engine: Engine, last_round: int, checksum: int) -> None:
        if self._file is not None and self._stated == (last_round, checksum):
            return
        state = SavedState(engine.config.to_mapping(), engine.fingerprint, engine.start_round, last_round, checksum)
        body = json.dumps(asdict(state), sort_keys=True).encode()
        write_durably(self.folder / "device.state", seal(_STATE, _VERSION, body), PRIVATE)
        self._stated = last_round, checksum

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_directory(self.folder)

    def _reopened(self) -> LedgerFile | None:
        """Reopen the ledger after a failed write; None makes the next save write all files again."""
        if self._file is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return LedgerFile.open(self._ledger_path, self._file.ledger.after)
        except (OSError, ZOError):
            return None

    def save_answer(self, digest: bytes, answer: bytes) -> None:
        """Save the last answer; warn if that fails."""
        try:
            write_durably(self.folder / "answer.bin", seal(_ANSWER, _ANSWER_VERSION, digest + answer), PRIVATE)
        except OSError as error:
            logger.warning(f"the last answer is not saved: {error}")

    def answer(self) -> tuple[bytes, bytes] | None:
        """Return the last answer's request digest and its bytes; None, with a warning unless there is none."""
        try:
            body = unseal((self.folder / "answer.bin").read_bytes(), _ANSWER, _ANSWER_VERSION)
        except FileNotFoundError:
            return None
        except ProtocolMismatch:  # of an earlier release, whose answers were not yet masked
            self._remove(self.folder / "answer.bin")
            return None
        except (OSError, ZOError) as error:
            logger.warning(f"the last answer in {self.folder} cannot be used ({error})")
            return None
        return body[:_DIGEST_BYTES], body[_DIGEST_BYTES:]


def _identity(engine: Engine) -> tuple[object, ...]:
    """Return what must not change within the files."""
    settings = json.dumps(engine.config.to_mapping(), sort_keys=True)
    return settings, engine.fingerprint, engine.start_round, engine.start_checksum


def _header(engine: Engine) -> LedgerHeader:
    return header_of(engine.config, engine.fingerprint, engine.base_checksum, describe_tensors(engine.state))


def _fixed(header: LedgerHeader) -> tuple[object, ...]:
    return header.fingerprint, header.base_checksum, header.scale, header.tensors


def _verifiable(records: Sequence[Record], saved: SavedState) -> tuple[int, int]:
    """Return how many of the records lead to a state of known checksum, and that checksum."""
    for count in range(len(records), 0, -1):
        record = records[count - 1]
        checksum = record.checksum or (saved.checksum if record.server_round == saved.last_round else 0)
        if checksum:
            return count, checksum
    return 0, 0


def _common(ours: Sequence[Record], theirs: Sequence[Record]) -> int:
    """Return the number of records that both start with."""
    count = 0
    for a, b in zip(ours, theirs, strict=False):
        if a is not b and a != b:
            break
        count += 1
    return count
