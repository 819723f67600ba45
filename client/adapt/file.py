"""The file of an adapted utterance: its record, and the data needed to replay it on the right model.

Body in a sealed envelope of kind "ZTAF", little-endian: base_id u64, reached u64; trained-tensors pattern, scale and
language as texts (u16 length, UTF-8); count u16 and seed u64 of each adaptation that the state was made of; then the
adaptation record to the end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from client.adapt.record import AdaptationRecord, decode_adaptation, encode_adaptation, undo
from zo_common.binary.durable import seal, unseal, write_durably
from zo_common.binary.packing import Reader, pack_text
from zo_common.errors import ChecksumMismatch, CodecError, ConfigError
from zo_common.lattice.grid import Scale
from zo_common.lattice.state import LatticeState
from zo_common.ledger.replay import apply_all

SUFFIX = ".zta"
_KIND, _VERSION = b"ZTAF", 1
_MAX_BYTES = 64 << 20
_MAX_TEXT = 1000


@dataclass(frozen=True)
class AdaptationFile:
    """A record and the model it belongs to.

    Attributes:
        record: the utterance's own.
        base_id: first 8 bytes of the base model's fingerprint, as a u64.
        trained_tensors, scale: what `LatticeState` was built with.
        language: of the transcript, for models that take one.
        made_of: seeds of the adaptations that the state consisted of, beyond the base, when it was transcribed. In an
            episode that is the record's own alone; in continual adaptation also those before it that were still held,
            and not its own where the drift guard refused it.
        reached: checksum of that state.
    """

    record: AdaptationRecord
    base_id: int
    trained_tensors: str
    scale: Scale
    language: str
    made_of: tuple[int, ...]
    reached: int


def encode_file(file: AdaptationFile) -> bytes:
    """Pack a file: about 80 bytes more than the record, and 8 more for every other adaptation held.

    Raises:
        ConfigError: the record cannot be encoded, the choice of tensors has more than 1000 bytes, or more than 65535
            adaptations are held.
    """
    if len(file.trained_tensors.encode()) > _MAX_TEXT:
        raise ConfigError("the trained-tensors pattern has more than 1000 bytes: write a shorter one to store records")
    if len(file.made_of) > 0xFFFF:
        raise ConfigError(f"{len(file.made_of)} adaptations are held, a record file names at most 65535: use an anchor")
    body = [
        struct.pack("<QQ", file.base_id, file.reached),
        *(pack_text(text, _MAX_TEXT) for text in (file.trained_tensors, file.scale, file.language)),
        struct.pack(f"<H{len(file.made_of)}Q", len(file.made_of), *file.made_of),
        encode_adaptation(file.record),
    ]
    return seal(_KIND, _VERSION, b"".join(body))


def decode_file(data: bytes) -> AdaptationFile:
    """Inverse of `encode_file`.

    Raises:
        CodecError: the data is truncated, altered, or no adaptation file.
        ProtocolMismatch: the file is of another version.
    """
    reader = Reader(unseal(data, _KIND, _VERSION), "adaptation file")
    base_id, reached = reader.take("QQ")
    pattern, scale, language = reader.text(), reader.text(), reader.text()
    if scale not in get_args(Scale):
        raise CodecError(f"adaptation file has unknown scale {scale!r}")
    (count,) = reader.take("H")
    if count > reader.remaining // 8:
        raise CodecError(f"adaptation file announces {count} adaptations in {reader.remaining} bytes")
    made_of = reader.take(f"{count}Q")
    record = decode_adaptation(reader.raw(reader.remaining))
    return AdaptationFile(record, base_id, pattern, cast(Scale, scale), language, made_of, reached)


def write_file(path: Path, file: AdaptationFile) -> None:
    """Write a record file, whole or not at all."""
    write_durably(path, encode_file(file))


def read_file(path: Path) -> AdaptationFile:
    """Read a record file.

    Raises:
        CodecError: the file is no record, or is damaged; the message names it.
        OSError: the file cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CodecError(f"file has {path.stat().st_size} bytes, an adaptation at most {_MAX_BYTES}")
        return decode_file(path.read_bytes())
    except CodecError as error:
        raise CodecError(f"'{path}' is no record of an adaptation ({error}): pass a {SUFFIX} file as written") from None


def replay_file(
    state: LatticeState, file: AdaptationFile, find: Callable[[int], AdaptationRecord | None] = lambda seed: None
) -> list[AdaptationRecord]:
    """Move a base state to the weights of the transcript; return the applied records, to be undone.

    Args:
        find: returns the record of another seed of `made_of`, or None; called for continual adaptations alone.

    Raises:
        ConfigError: another adaptation's record is missing.
        ChecksumMismatch: the state reached is not that of the transcript; the weights are as before.
        LatticeOverflow: a weight would leave its lattice; the weights are as before.
    """
    found = [file.record if seed == file.record.seed else find(seed) for seed in file.made_of]
    records = [record for record in found if record is not None]
    if len(records) < len(found):
        raise ConfigError(
            f"{len(found) - len(records)} of the {len(found)} adaptations that this one is made of are not beside it: "
            "keep all records of a continual adaptation in one folder"
        )
    apply_all(state, [update for record in records for update in record.updates()])
    try:
        state.expect_checksum(file.reached)
    except ChecksumMismatch:
        for record in reversed(records):
            undo(state, record)
        raise
    return records
