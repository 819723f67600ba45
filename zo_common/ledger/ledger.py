"""The ledger: a header that names the base model, then one checksummed record per round, chained by hash.

The base model and this file together give the adapted model; neither is sufficient alone.

File layout, little-endian: magic `ZOLEDGER`, protocol u16, length u32 of the header, header (zlib-compressed JSON),
header chain (16 bytes); then records: length u32, record bytes (`record_codec`), chain (16 bytes). A chain value is
BLAKE2b-128, person `zo-asr/ledger/v1`, of the previous chain value and the bytes it closes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError, LedgerAltered, LedgerError, LedgerTruncated, ProtocolMismatch
from zo_common.lattice.grid import Scale
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger.layout import CHAIN_BYTES
from zo_common.ledger.record import Record, all_updates
from zo_common.ledger.record_codec import decode_record, described_size, encode_record

PROTOCOL = 1
MAGIC = b"ZOLEDGER"
_FINGERPRINT_BYTES = 32
_PERSON = b"zo-asr/ledger/v1"
MAX_HEADER = 4 << 20  # about forty thousand tensors; parsed, it takes some twenty times as much memory
_MOST_EXPONENT = 500  # beyond any of a float32; 2 to the power of a difference is a float


@dataclass(frozen=True)
class TensorEntry:
    """A trained tensor with the exponents that the ledger fixes."""

    name: str
    shape: tuple[int, ...]
    grid_exponent: int
    scale_exponent: int


@dataclass(frozen=True)
class LedgerHeader:
    """Description of a run that a replay needs besides the rounds.

    Attributes:
        fingerprint: of the base model, 64 hex digits.
        base_checksum: state checksum of the snapped base, as u64.
        model: where the base model was loaded from (hub id or path), a hint only.
        pattern: the choice of trained tensors, as the user wrote it.
        epsilon: perturbation size of the run; 0 if each device chose its own. A replay does not need it.
        settings: run settings kept for the record (learning rate, queries …); they do not affect a replay.
    """

    fingerprint: str
    base_checksum: int
    model: str
    pattern: str
    scale: Scale
    epsilon: float
    estimator: str
    run_seed: int
    created: str
    tensors: tuple[TensorEntry, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def base_id(self) -> int:
        """First 8 bytes of the fingerprint as a u64, as plans carry it."""
        return int(self.fingerprint[:16], 16)

    @property
    def exponents(self) -> dict[str, tuple[int, int]]:
        """Name → (grid exponent, scale exponent)."""
        return {t.name: (t.grid_exponent, t.scale_exponent) for t in self.tensors}


@dataclass(frozen=True)
class Ledger:
    """A header and consecutive rounds from `after + 1`.

    Attributes:
        after: the last round that is missing at the front, 0 in a ledger that starts from the base model. It is not
            part of the file: a device that started from a snapshot must store it elsewhere.
    """

    header: LedgerHeader
    records: tuple[Record, ...] = ()
    after: int = 0

    @property
    def last_round(self) -> int:
        """The newest round, `after` before the first."""
        return self.records[-1].server_round if self.records else self.after

    def since(self, server_round: int) -> tuple[Record, ...]:
        """Return records of the rounds after `server_round`.

        Raises:
            LedgerError: some of them come before this ledger's first.
        """
        if server_round < self.after:
            raise LedgerError(
                f"rounds after {server_round} were asked of a ledger that starts after round {self.after}: "
                "start from the base model or from a snapshot"
            )
        return self.records[server_round - self.after :]

    def updates(self) -> list[Update]:
        """Return every update of every round."""
        return all_updates(self.records)


def describe_tensors(state: LatticeState) -> tuple[TensorEntry, ...]:
    """Return the header's tensor list of a lattice state."""
    return tuple(TensorEntry(t.name, tuple(t.weight.shape), t.grid_exponent, t.scale_exponent) for t in state.tensors)


def chain_next(chain: bytes, data: bytes) -> bytes:
    """Return the chain value that closes `data` after `chain`."""
    return hashlib.blake2b(chain + data, digest_size=CHAIN_BYTES, person=_PERSON).digest()


def encode_header(header: LedgerHeader) -> tuple[bytes, bytes]:
    """File bytes of the header and its chain value."""
    text = json.dumps(asdict(header), sort_keys=True, separators=(",", ":"))
    body = zlib.compress(text.encode(), 9)
    data = MAGIC + struct.pack("<HI", PROTOCOL, len(body)) + body
    chain = chain_next(b"", data)
    return data + chain, chain


def encode_entry(record: Record, chain: bytes) -> tuple[bytes, bytes]:
    """File bytes of one record and the chain value after it."""
    body = encode_record(record)
    following = chain_next(chain, body)
    return struct.pack("<I", len(body)) + body + following, following


def encode_ledger(ledger: Ledger) -> bytes:
    """Return the bytes of a whole file."""
    data, chain = encode_header(ledger.header)
    parts = [data]
    for record in ledger.records:
        entry, chain = encode_entry(record, chain)
        parts.append(entry)
    return b"".join(parts)


def _decode_header(body: bytes) -> LedgerHeader:
    try:
        unzip = zlib.decompressobj()
        text = unzip.decompress(body, MAX_HEADER)
        if not unzip.eof:
            raise ValueError("compressed header does not end")
        raw = json.loads(text)
        keys = ("name", "shape", "grid_exponent", "scale_exponent")
        tensors = tuple(tensor_entry(*(t[key] for key in keys)) for t in raw.pop("tensors"))
        header = LedgerHeader(**raw, tensors=tensors)
        check_base(header.fingerprint, header.base_checksum)
        _check_words(header)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, zlib.error) as error:
        raise LedgerAltered(f"the ledger's header cannot be read ({error}): fetch the file again") from None
    return header


def tensor_entry(name: Any, shape: Any, grid_exponent: Any, scale_exponent: Any) -> TensorEntry:
    """Return a trained tensor as untrusted JSON describes it.

    Raises:
        ValueError, TypeError: a field is of another type or out of range.
    """
    numbers = [*shape, grid_exponent, scale_exponent]
    if not isinstance(name, str) or not all(type(number) is int for number in numbers):
        raise TypeError(f"tensor {str(name)[:100]!r} is described by other types")
    sizes = all(0 <= size < 1 << 48 for size in shape)
    if len(shape) > 64 or not sizes or max(abs(grid_exponent), abs(scale_exponent)) > _MOST_EXPONENT:
        raise ValueError(f"tensor {name[:100]!r} has a shape or exponent out of range")
    return TensorEntry(name, tuple(shape), grid_exponent, scale_exponent)


def check_base(fingerprint: Any, checksum: Any) -> None:
    """Refuse values that cannot be a base model's fingerprint and checksum.

    Raises:
        ValueError, TypeError: they are of another type or out of range.
    """
    if len(bytes.fromhex(fingerprint)) != _FINGERPRINT_BYTES or len(fingerprint) != 2 * _FINGERPRINT_BYTES:
        raise ValueError(f"fingerprint is {fingerprint[:100]!r}, expected 64 hexadecimal digits")
    if type(checksum) is not int or not 0 <= checksum < 1 << 64:
        raise ValueError("the base's checksum is out of range")


def _check_words(header: LedgerHeader) -> None:
    words = (header.model, header.pattern, header.estimator, header.created)
    if not all(isinstance(word, str) for word in words) or not isinstance(header.settings, dict):
        raise TypeError("a field is of another type")
    if header.scale not in get_args(Scale):
        raise ValueError(f"scale is {str(header.scale)[:100]!r}")
    if type(header.run_seed) is not int or not 0 <= header.run_seed < 1 << 64:
        raise ValueError("the run seed is out of range")
    if type(header.epsilon) not in (int, float) or not (math.isfinite(header.epsilon) and header.epsilon >= 0):
        raise ValueError("epsilon is out of range")


def read_header(reader: Reader) -> tuple[LedgerHeader, bytes]:
    """Return the header and its chain value.

    Raises:
        LedgerTruncated, LedgerAltered, ProtocolMismatch: see the messages.
    """
    try:
        magic, protocol, length = reader.take("8sHI")
        if magic != MAGIC:
            raise LedgerAltered(
                f"the file starts with {magic!r}, a ledger starts with {MAGIC!r}: is it the right file?"
            )
        if protocol != PROTOCOL:
            raise ProtocolMismatch(
                f"the ledger has protocol version {protocol}, this program speaks {PROTOCOL}: use a matching release"
            )
        body = reader.raw(length)
        chain = reader.raw(CHAIN_BYTES)
    except CodecError:
        raise LedgerTruncated("the ledger ends within its header: fetch the file again") from None
    if chain_next(b"", MAGIC + struct.pack("<HI", protocol, length) + body) != chain:
        raise LedgerAltered("the ledger's header does not match its checksum: the file was altered or damaged")
    return _decode_header(body), chain


def _is_torn(rest: memoryview, chain: bytes) -> bool:
    """Return whether the bytes from a record's length field to the end of the file are the result of a crash.

    A crash within an append leaves fewer bytes than the length says, or only zeros (reserved, unwritten space). If a
    whole record is present and only its length is wrong, the file was altered, and later rounds must not be dropped.
    """
    if not any(rest):
        return True
    if len(rest) < 4 or len(rest) - 4 >= struct.unpack_from("<I", rest)[0] + CHAIN_BYTES:
        return len(rest) < 4
    size = described_size(rest[4:])
    if size is None or len(rest) < 4 + size + CHAIN_BYTES:
        return True
    return chain_next(chain, bytes(rest[4 : 4 + size])) != rest[4 + size : 4 + size + CHAIN_BYTES]


def iter_entries(reader: Reader, chain: bytes, after: int = 0) -> Iterator[tuple[Record, bytes]]:
    """Yield records with their chain values.

    Raises:
        LedgerTruncated: the last record is torn, e.g. by a crash within an append.
        LedgerAltered: a chain value does not hold, or rounds do not count up from `after + 1`.
    """
    expected = after + 1
    while reader.remaining:
        rest = reader.rest()
        if _is_torn(rest, chain):
            raise LedgerTruncated(f"the ledger ends within round {expected}: a crash cut the last record")
        try:
            body = reader.raw(reader.take("I")[0])
            found = reader.raw(CHAIN_BYTES)
        except CodecError:
            raise LedgerAltered(f"the length of round {expected} was altered: fetch the file again") from None
        chain = chain_next(chain, body)
        if found != chain:
            raise LedgerAltered(f"round {expected} of the ledger does not match its hash chain: the file was altered")
        try:
            record = decode_record(body)
        except CodecError as error:
            raise LedgerAltered(f"round {expected} of the ledger is malformed: {error}") from None
        if record.server_round != expected:
            raise LedgerAltered(f"round {record.server_round} stands where round {expected} belongs")
        yield record, chain
        expected += 1


def decode_ledger(data: bytes, after: int = 0) -> Ledger:
    """Read a whole file, strictly: a torn end is an error here (`LedgerFile.open` repairs it)."""
    reader = Reader(data, "ledger")
    header, chain = read_header(reader)
    return Ledger(header, tuple(record for record, _ in iter_entries(reader, chain, after)), after)


def require_same_base(ledger: LedgerHeader, other: LedgerHeader) -> None:
    """Refuse to join two ledgers with different base models, trained tensors or scales.

    Raises:
        LedgerError: names the first difference.
    """
    for what, a, b in (
        ("base model", ledger.fingerprint, other.fingerprint),
        ("trained tensors", ledger.tensors, other.tensors),
        ("scale", ledger.scale, other.scale),
    ):
        if a != b:
            raise LedgerError(f"the ledgers differ in {what}: only runs on one base with the same settings combine")
