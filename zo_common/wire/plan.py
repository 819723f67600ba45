"""The server's plan and the client's reply, as packed bytes of bounded size."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass, field
from enum import IntEnum
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from zo_common.binary.packing import Reader, pack_signs, pack_text
from zo_common.errors import CodecError, ConfigError
from zo_common.estimator.curvature import Curvature
from zo_common.estimator.settings import Estimator, EstimatorConfig
from zo_common.ledger.record import Record
from zo_common.ledger.record_codec import decode_record, encode_record
from zo_common.privacy.mechanism import LEVELS, Mechanism

MESSAGE_VERSION = 2
_PLAN, _REPLY, _VOTES = b"ZP", b"ZR", b"ZV"
_PLAN_LAYOUT = "IQQQQHHHBffB"
_REPLY_LAYOUT = "BIIQQQHHIfB"
_CURVATURE_LAYOUT = "ffff"
_PRIVACY_LAYOUT = "BddI"
_MASKED = len(LEVELS)  # device level, with noise added before masking in a secure sum
_ESTIMATORS = get_args(Estimator)
MAX_RECORDS = 1 << 20


class Status(IntEnum):
    """Status of a client's answer."""

    OK = 0
    BEHIND = 1
    NON_FINITE = 2
    CHECKSUM = 3
    ERROR = 4
    BUSY = 5

    @property
    def reason(self) -> str:
        """Code under which a server counts answers with this status that it refuses."""
        return f"client-{self.name.lower().replace('_', '-')}"


@dataclass(frozen=True)
class Plan:
    """One client's work in one round.

    Attributes:
        server_round: the round to contribute to; the client must hold the state of round `server_round − 1`.
        seed: u64 of this client's directions in this round (`seeds.client_seed` or `seeds.shared_seed`).
        client_id: the client's id at the server.
        base_id: first 8 bytes of the base model's fingerprint, as u64.
        checksum: state checksum before the round's training; 0 if the server holds no model.
        records: ledger rounds the client may lack, consecutive, the last one `server_round − 1`.
        privacy: clipping and noise of the reply; None for no privacy guarantee.
        curvature: whether the reply includes the curvature; never together with privacy, which it would break.
    """

    server_round: int
    seed: int
    client_id: int
    base_id: int
    checksum: int
    local_steps: int
    batch_size: int
    learning_rate: float
    estimator: EstimatorConfig
    records: tuple[Record, ...] = ()
    privacy: Mechanism | None = None
    curvature: bool = False


@dataclass(frozen=True, eq=False)
class Reply:
    """A client's answer. For status OK it carries projected gradients, float32 (K, q); else a message to the operator.

    Attributes:
        have_round: the last ledger round the client has applied.
        checksum: state checksum at which it trained, that is after `have_round`.
        loss: mean training loss, for progress only.
        one_bit: whether the bytes hold only the scalars' signs, read as ±1, 0 as positive.
        curvature: mean over the local steps, float32 in the encoding; present if the plan asks for it.
    """

    status: Status
    server_round: int
    have_round: int
    client_id: int
    seed: int
    checksum: int
    num_examples: int = 0
    loss: float = 0.0
    projected_grads: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    message: str = ""
    one_bit: bool = False
    curvature: Curvature | None = None


def encode_plan(plan: Plan) -> bytes:
    """Pack a plan: 59 bytes, each ledger record with a u32 length before it, and 21 bytes if it asks for privacy."""
    e = plan.estimator
    head = struct.pack(
        "<2sB" + _PLAN_LAYOUT,
        _PLAN,
        MESSAGE_VERSION,
        plan.server_round,
        plan.seed,
        plan.client_id,
        plan.base_id,
        plan.checksum,
        e.num_queries,
        plan.local_steps,
        plan.batch_size,
        _ESTIMATORS.index(e.estimator),
        e.epsilon,
        plan.learning_rate,
        plan.curvature,
    )
    parts = [encode_record(r) for r in plan.records]
    body = b"".join(struct.pack("<I", len(p)) + p for p in parts)
    return head + struct.pack("<I", len(parts)) + body + _encode_mechanism(plan.privacy)


def _encode_mechanism(asked: Mechanism | None) -> bytes:
    """Pack the privacy part, empty without privacy; a device that does not know these bytes refuses the plan."""
    if asked is None:
        return b""
    level = _MASKED if asked.masked else LEVELS.index(asked.level)
    return struct.pack("<" + _PRIVACY_LAYOUT, level, asked.clip_norm, asked.noise_multiplier, asked.num_examples)


def _decode_mechanism(reader: Reader) -> Mechanism | None:
    if reader.remaining < struct.calcsize("<" + _PRIVACY_LAYOUT):
        return None  # any other bytes are refused by `finish`
    level, clip_norm, noise, examples = reader.take(_PRIVACY_LAYOUT)
    if level > _MASKED:
        raise CodecError(f"plan asks for privacy of unknown level {level}")
    try:
        return Mechanism("example" if level == 0 else "device", clip_norm, noise, examples, level == _MASKED)
    except ConfigError as error:
        raise CodecError(f"plan: {error}") from None


def decode_plan(data: bytes) -> Plan:
    """Inverse of `encode_plan`.

    Raises:
        CodecError: truncated, oversized, or a field out of range.
    """
    reader = Reader.open(data, "plan", _PLAN, MESSAGE_VERSION)
    rnd, seed, client, base, checksum, q, steps, batch, kind, epsilon, rate, curved = reader.take(_PLAN_LAYOUT)
    if kind >= len(_ESTIMATORS) or steps < 1 or batch < 1 or rnd < 1 or not np.isfinite(rate) or curved > 1:
        raise CodecError("plan has a field out of range")
    try:
        estimator = EstimatorConfig(_ESTIMATORS[kind], q, epsilon)
    except ConfigError as error:
        raise CodecError(f"plan: {error}") from None
    (count,) = reader.take("I")
    if count > min(MAX_RECORDS, reader.remaining // 4):
        raise CodecError(f"plan announces {count} records in {reader.remaining} bytes")
    records = tuple(decode_record(reader.raw(reader.take("I")[0])) for _ in range(count))
    privacy = _decode_mechanism(reader)
    reader.finish()
    if privacy is not None and curved:
        raise CodecError("plan asks for privacy and for the curvature, which carries no noise: ask for one of the two")
    for before, after in zip(records, records[1:], strict=False):
        if after.server_round != before.server_round + 1:
            raise CodecError("plan's ledger records are not consecutive")
    if records and records[-1].server_round != rnd - 1:
        raise CodecError(f"plan for round {rnd} ends its records at round {records[-1].server_round}")
    return Plan(rnd, seed, client, base, checksum, steps, batch, rate, estimator, records, privacy, bool(curved))


def encode_reply(reply: Reply) -> bytes:
    """Pack a reply: 51 bytes, 4 bytes (or, if `one_bit`, one bit) per scalar, 16 of curvature, and the message."""
    steps, queries = reply.projected_grads.shape
    head = struct.pack(
        "<2sB" + _REPLY_LAYOUT,
        _VOTES if reply.one_bit else _REPLY,
        MESSAGE_VERSION,
        reply.status,
        reply.server_round,
        reply.have_round,
        reply.client_id,
        reply.seed,
        reply.checksum,
        steps,
        queries,
        reply.num_examples,
        reply.loss,
        reply.curvature is not None,
    )
    body = pack_signs(reply.projected_grads) if reply.one_bit else reply.projected_grads.astype("<f4").tobytes()
    return head + body + _encode_curvature(reply.curvature) + pack_text(reply.message)


def _encode_curvature(found: Curvature | None) -> bytes:
    """Pack t, gᵀFg of signal and of noise, and v, or nothing; float32 overflow becomes infinite, and is refused."""
    if found is None:
        return b""
    with np.errstate(over="ignore"):
        return np.array(astuple(found), np.float64).astype("<f4").tobytes()


def decode_reply(data: bytes) -> Reply:
    """Inverse of `encode_reply`.

    Raises:
        CodecError: truncated, oversized, or of unknown status.
    """
    one_bit = data[:2] == _VOTES
    reader = Reader.open(data, "reply", _VOTES if one_bit else _REPLY, MESSAGE_VERSION)
    status, rnd, have, client, seed, checksum, steps, queries, examples, loss, curved = reader.take(_REPLY_LAYOUT)
    if status not in set(Status):
        raise CodecError(f"reply has unknown status {status}")
    if curved > 1:
        raise CodecError(f"reply has curvature flag {curved}, expected 0 or 1")
    count = steps * queries
    if (count // 8 if one_bit else 4 * count) > reader.remaining:
        raise CodecError(f"reply announces {steps}·{queries} scalars in {reader.remaining} bytes")
    grads = (reader.signs(count) if one_bit else reader.floats(count)).reshape(steps, queries)
    curvature = Curvature(*reader.take(_CURVATURE_LAYOUT)) if curved else None
    message = reader.text()
    reader.finish()
    return Reply(Status(status), rnd, have, client, seed, checksum, examples, loss, grads, message, one_bit, curvature)
