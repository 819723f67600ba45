"""A calibration's question to a device and its answer: numbers for groups of tensors, never for single recordings.

Packed, little-endian, of bounded size; each begins with its magic and its version.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from zo_common.binary.packing import Reader, pack_text
from zo_common.errors import CodecError, NonFiniteLoss
from zo_common.estimator.calibration import GroupMeasure
from zo_common.wire.plan import Status

VERSION = 1
MOST_GROUPS = 64
MOST_NAME_BYTES = 100
_ASK, _ANSWER = b"ZK", b"ZL"
_ASK_LAYOUT = "QQIIIH"
_ANSWER_LAYOUT = "BQQH"
_MEASURE_LAYOUT = "QI5d"


@dataclass(frozen=True)
class CalibrationAsk:
    """The measurement asked of one device; its groups follow from the model and the device's `place`.

    Attributes:
        seed: u64 seed of directions and batches.
        client_id: the device's id at the server.
        place, devices: this device is the `place`-th of `devices`, from 0 (`calibration.shared_out`).
        passes: total forward passes of a batch, no more than in a round.
        batch_size: utterances.
    """

    seed: int
    client_id: int
    place: int
    devices: int
    passes: int
    batch_size: int


@dataclass(frozen=True)
class CalibrationAnswer:
    """A device's measurements by group; for a status other than OK a message to the operator."""

    status: Status
    seed: int
    client_id: int
    measures: Mapping[str, GroupMeasure] = field(default_factory=dict)
    message: str = ""


def is_calibration(data: bytes) -> bool:
    """Return whether packed bytes are a calibration's question."""
    return data[:2] == _ASK


def encode_ask(ask: CalibrationAsk) -> bytes:
    """Pack a question: 33 bytes."""
    return struct.pack("<2sB" + _ASK_LAYOUT, _ASK, VERSION, *astuple(ask))


def decode_ask(data: bytes) -> CalibrationAsk:
    """Inverse of `encode_ask`.

    Raises:
        CodecError: truncated, oversized, of another version, or a field out of range.
    """
    reader = Reader.open(data, "calibration's question", _ASK, VERSION)
    ask = CalibrationAsk(*reader.take(_ASK_LAYOUT))
    reader.finish()
    if not (ask.place < ask.devices and min(ask.passes, ask.batch_size) >= 1):
        raise CodecError(f"calibration's question has a field out of range ({ask}): update the older side")
    return ask


def encode_answer(answer: CalibrationAnswer) -> bytes:
    """Pack an answer: 24 bytes, 54 and the name for each group, and the message.

    Raises:
        CodecError: more than `MOST_GROUPS` groups.
    """
    if len(answer.measures) > MOST_GROUPS:
        raise CodecError(f"calibration's answer has {len(answer.measures)} groups, expected at most {MOST_GROUPS}")
    head = struct.pack(
        "<2sB" + _ANSWER_LAYOUT, _ANSWER, VERSION, answer.status, answer.seed, answer.client_id, len(answer.measures)
    )
    body = b"".join(
        pack_text(name, MOST_NAME_BYTES) + struct.pack("<" + _MEASURE_LAYOUT, *astuple(measure))
        for name, measure in sorted(answer.measures.items())
    )
    return head + body + pack_text(answer.message)


def decode_answer(data: bytes) -> CalibrationAnswer:
    """Inverse of `encode_answer`.

    Raises:
        CodecError: truncated, oversized, of another version, or numbers that cannot be.
    """
    reader = Reader.open(data, "calibration's answer", _ANSWER, VERSION)
    status, seed, client, count = reader.take(_ANSWER_LAYOUT)
    if status not in set(Status):
        raise CodecError(f"calibration's answer has unknown status {status}")
    if count > MOST_GROUPS:
        raise CodecError(f"calibration's answer has {count} groups, expected at most {MOST_GROUPS}")
    measures: dict[str, GroupMeasure] = {}
    for _ in range(count):
        name = reader.text()
        if len(name.encode()) > MOST_NAME_BYTES or name in measures:
            raise CodecError("calibration's answer names a group twice or at too great a length")
        try:
            measures[name] = GroupMeasure(*reader.take(_MEASURE_LAYOUT))
        except NonFiniteLoss as error:
            raise CodecError(f"calibration's answer: {error}") from None
    message = reader.text()
    reader.finish()
    return CalibrationAnswer(Status(status), seed, client, measures, message)
