"""Plans and replies: exact round trips and sizes, and nothing but a CodecError from damaged bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zo_common.errors import CodecError
from zo_common.estimator.curvature import Curvature
from zo_common.estimator.settings import Estimator, EstimatorConfig
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.record_codec import encode_record
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, Reply, Status, decode_plan, decode_reply, encode_plan, encode_reply

Records = Callable[[int], Record]
u16, u64 = st.integers(1, 2**16 - 1), st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
any_float = st.floats(width=32)
positive = st.floats(2.0**-126, 2.0**100, width=32)
shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6)
CURVATURE = Curvature(1e4, -2.5, 0.125, 3.0)
estimators = st.builds(EstimatorConfig, st.sampled_from(get_args(Estimator)), st.integers(2, 65535), positive)


@st.composite
def plans(draw: Any) -> Plan:
    """Plans whose ledger records lead up to the round."""
    server_round = draw(st.integers(1, 2**32 - 1))
    count = draw(st.integers(0, min(3, server_round - 1)))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32)
    records = tuple(
        Record(server_round - count + i, draw(u64), (Contribution(draw(u64), draw(u64), np.array([[draw(finite)]])),))
        for i in range(count)
    )
    rate = draw(st.floats(width=32, allow_nan=False, allow_infinity=False))
    words = [draw(u64) for _ in range(4)]
    return Plan(
        server_round, *words, draw(u16), draw(u16), rate, draw(estimators), records, curvature=draw(st.booleans())
    )


replies = st.builds(
    Reply,
    status=st.sampled_from(Status),
    server_round=u32,
    have_round=u32,
    client_id=u64,
    seed=u64,
    checksum=u64,
    num_examples=u32,
    loss=any_float,
    projected_grads=arrays.arrays(np.float32, shapes, elements=any_float),
    message=st.text(max_size=200),
    curvature=st.none() | st.builds(Curvature, any_float, any_float, any_float, any_float),
)


@given(plans())
def test_plans_survive_the_round_trip(plan: Plan) -> None:
    data = encode_plan(plan)

    assert decode_plan(data) == plan
    assert encode_plan(decode_plan(data)) == data


@given(replies)
def test_replies_survive_the_round_trip(reply: Reply) -> None:
    found = decode_reply(encode_reply(reply))

    for name in ("status", "server_round", "have_round", "client_id", "seed", "checksum", "num_examples", "message"):
        assert getattr(found, name) == getattr(reply, name)
    assert isinstance(found.status, Status)
    assert struct.pack("<f", found.loss) == struct.pack("<f", reply.loss)
    assert found.projected_grads.shape == reply.projected_grads.shape
    assert found.projected_grads.tobytes() == reply.projected_grads.tobytes()
    assert repr(found.curvature) == repr(reply.curvature)  # a NaN is itself


def _plan(records: tuple[Record, ...] = (), **fields: Any) -> Plan:
    values: dict[str, Any] = {
        "server_round": 5,
        "seed": 2**64 - 1,
        "client_id": 3,
        "base_id": 4,
        "checksum": 6,
        "local_steps": 2,
        "batch_size": 16,
        "learning_rate": 0.125,
        "estimator": EstimatorConfig("leave-one-out", 8, 2.0**-10),
        "records": records,
    }
    return Plan(**(values | fields))


def _reply(**fields: Any) -> Reply:
    grads = np.arange(6, dtype=np.float32).reshape(2, 3)
    return Reply(Status.OK, 5, 4, 3, 2**64 - 1, 6, 40, 1.5, **({"projected_grads": grads} | fields))


def test_exact_sizes(record_of: Records) -> None:
    """The sizes that docstrings and documentation quote."""
    records = (record_of(3), record_of(4))

    assert len(encode_plan(_plan())) == 59
    assert len(encode_plan(_plan(records))) == 59 + sum(4 + len(encode_record(r)) for r in records)
    assert len(encode_reply(Reply(Status.BEHIND, 1, 0, 1, 1, 1))) == 51
    assert len(encode_reply(_reply())) == 51 + 4 * 6
    assert len(encode_reply(_reply(message="Ä!"))) == 51 + 4 * 6 + 3
    assert len(encode_reply(_reply(curvature=CURVATURE))) == 51 + 4 * 6 + 16
    assert "59 bytes" in str(encode_plan.__doc__)
    assert "51 bytes" in str(encode_reply.__doc__)


def test_defaults_of_a_reply_without_scalars() -> None:
    found = decode_reply(encode_reply(Reply(Status.NON_FINITE, 1, 0, 2, 3, 4, message="the loss is not finite")))

    assert (found.num_examples, found.loss, found.projected_grads.shape) == (0, 0.0, (0, 0))
    assert found.message == "the loss is not finite"


def test_a_reply_carries_its_curvature_in_float32() -> None:
    found = decode_reply(encode_reply(_reply(curvature=Curvature(1e4, -2.5, 0.1, 1e39)))).curvature

    assert found == Curvature(1e4, -2.5, float(np.float32(0.1)), float("inf"))  # which the server refuses


def test_a_plan_asks_for_privacy_or_for_the_curvature() -> None:
    plan = _plan(privacy=Mechanism("example", 1.0, 1.0, 10), curvature=True)

    with pytest.raises(CodecError, match="privacy and for the curvature"):
        decode_plan(encode_plan(plan))


def test_long_messages_are_cut() -> None:
    found = decode_reply(encode_reply(_reply(message="é" * 5000)))

    assert found.message == "é" * 500


def test_a_message_with_an_undecodable_file_name_can_be_sent() -> None:
    """Python stands lone surrogates for bytes of a file name that are not UTF-8."""
    name = b"speech-\xff.wav".decode("utf-8", "surrogateescape")

    found = decode_reply(encode_reply(Reply(Status.ERROR, 1, 0, 2, 3, 4, message=f"cannot read {name}")))

    assert found.message.startswith("cannot read speech-")


def test_every_truncation_and_extension_is_refused(record_of: Records) -> None:
    for data, decode in (
        (encode_plan(_plan((record_of(3), record_of(4)))), decode_plan),
        (encode_reply(_reply(message="word")), decode_reply),
        (encode_reply(_reply(message="word", curvature=CURVATURE)), decode_reply),
    ):
        for length in range(len(data)):
            with pytest.raises(CodecError):
                decode(data[:length])
        with pytest.raises(CodecError, match="1 bytes too many"):
            decode(data + b"\0")


@pytest.mark.parametrize("what", ["plan", "reply"])
def test_every_altered_byte_decodes_or_is_a_codec_error(record_of: Records, what: str) -> None:
    data, decode, encode = {
        "plan": (encode_plan(_plan((record_of(4),))), decode_plan, encode_plan),
        "reply": (encode_reply(_reply(message="word")), decode_reply, encode_reply),
    }[what]
    decoded = 0

    for place in range(len(data)):
        for value in range(256):
            altered = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                found = decode(altered)
            except CodecError as error:
                assert str(error)
                continue
            assert encode(found) == altered
            decoded += 1

    assert len(data) < decoded < 256 * len(data)


@settings(max_examples=300)
@given(st.sampled_from([b"ZP\x02", b"ZR\x02", b""]), st.binary(max_size=150))
def test_any_bytes_decode_or_are_a_codec_error(start: bytes, rest: bytes) -> None:
    for decode, encode in ((decode_plan, encode_plan), (decode_reply, encode_reply)):
        try:
            found = decode(start + rest)
        except CodecError:
            continue
        assert encode(found) == start + rest


def test_the_wrong_kind_and_version_are_named() -> None:
    plan, reply = encode_plan(_plan()), encode_reply(_reply())

    with pytest.raises(CodecError, match="plan starts with b'ZR', expected b'ZP'"):
        decode_plan(reply)
    with pytest.raises(CodecError, match="reply starts with b'ZP'"):
        decode_reply(plan)
    with pytest.raises(CodecError, match="version 1, this program speaks 2: update the older side"):
        decode_plan(plan[:2] + b"\x01" + plan[3:])


@pytest.mark.parametrize(
    "fields",
    [
        {"server_round": 0},
        {"local_steps": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
    ],
)
def test_plans_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(CodecError, match="out of range"):
        decode_plan(encode_plan(_plan(**fields)))


def _with(data: bytes, layout: str, offset: int, value: object) -> bytes:
    packed = struct.pack("<" + layout, value)
    return data[:offset] + packed + data[offset + len(packed) :]


def test_fields_that_no_encoder_writes_are_refused() -> None:
    plan, reply = encode_plan(_plan()), encode_reply(_reply())

    with pytest.raises(CodecError, match="plan: epsilon is nan"):
        decode_plan(_with(plan, "f", 46, float("nan")))
    with pytest.raises(CodecError, match="plan: num-queries is 1"):
        decode_plan(_with(plan, "H", 39, 1))
    with pytest.raises(CodecError, match="out of range"):
        decode_plan(_with(plan, "B", 45, 3))
    with pytest.raises(CodecError, match="announces 1000000 records in 0 bytes"):
        decode_plan(_with(plan, "I", 55, 1_000_000))
    with pytest.raises(CodecError, match="unknown status 9"):
        decode_reply(_with(reply, "B", 3, 9))
    with pytest.raises(CodecError, match="out of range"):
        decode_plan(_with(plan, "B", 54, 2))
    with pytest.raises(CodecError, match="curvature flag 2"):
        decode_reply(_with(reply, "B", 48, 2))
    with pytest.raises(CodecError, match="announces 65535·3 scalars in 26 bytes"):
        decode_reply(_with(reply, "H", 36, 65535))


@pytest.mark.parametrize("rounds", [(2, 4), (4, 3), (3,), (5,), (4, 4), (2, 3)])
def test_records_must_lead_up_to_the_round(record_of: Records, rounds: tuple[int, ...]) -> None:
    with pytest.raises(CodecError, match=r"not consecutive|ends its records at round"):
        decode_plan(encode_plan(_plan(tuple(record_of(n) for n in rounds))))
