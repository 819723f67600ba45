"""A snapshot in messages of bounded size: split, joined again, and nothing else accepted."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import split_snapshot
from torch import nn

from zo_common.errors import CodecError, ConfigError
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger import snapshot as snapshot_module
from zo_common.ledger.snapshot import (
    SnapshotPart,
    apply_snapshot,
    decode_part,
    encode_part,
    encode_snapshot,
)

PART = SnapshotPart(2**64 - 2, 7, 40, 2**63 + 1, 1, 3, b"some bytes")


def test_parts_have_the_documented_bytes_and_join_again() -> None:
    data = encode_part(PART)
    head = b"ZS\x01" + struct.pack("<QQIQIII", 2**64 - 2, 7, 40, 2**63 + 1, 1, 3, 10)

    assert data == head + b"some bytes"
    assert decode_part(data) == PART


@given(st.binary(min_size=1, max_size=300), st.integers(44, 200))
def test_a_split_snapshot_joins_again_and_keeps_the_limit(data: bytes, limit: int) -> None:
    parts = split_snapshot(data, base_id=1, client_id=2, server_round=3, checksum=4, limit=limit)
    encoded = [encode_part(part) for part in parts]

    assert b"".join(decode_part(part).data for part in encoded) == data
    assert [(p.part, p.parts) for p in parts] == [(n, len(parts)) for n in range(len(parts))]
    assert {(p.base_id, p.client_id, p.server_round, p.checksum) for p in parts} == {(1, 2, 3, 4)}
    assert all(len(part) == limit for part in encoded[:-1])
    assert 43 < len(encoded[-1]) <= limit


@pytest.mark.parametrize("limit", [0, 43, -5])
def test_a_limit_without_room_for_data_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"parts of {limit} bytes: allow larger messages"):
        split_snapshot(b"data", base_id=1, client_id=2, server_round=3, checksum=4, limit=limit)


def test_more_parts_than_a_reader_accepts_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "MAX_PARTS", 3)
    fields = {"base_id": 1, "client_id": 2, "server_round": 3, "checksum": 4, "limit": 44}

    assert len(split_snapshot(b"abc", **fields)) == 3
    with pytest.raises(ConfigError, match="allow larger messages"):
        split_snapshot(b"abcd", **fields)


def test_every_truncated_or_longer_part_is_refused() -> None:
    data = encode_part(PART)

    for broken in [*(data[:length] for length in range(len(data))), data + b"\x00"]:
        with pytest.raises(CodecError):
            decode_part(broken)


@pytest.mark.parametrize(
    "wrong", [{"part": 3}, {"part": 0, "parts": 0}, {"parts": 2**20 + 1}, {"data": b""}, {"part": 2**32 - 1}]
)
def test_a_part_that_cannot_be_is_refused(wrong: dict[str, int | bytes]) -> None:
    with pytest.raises(CodecError, match=r"snapshot part .* expected one of"):
        decode_part(encode_part(replace(PART, **wrong)))


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_a_part_or_a_codec_error(data: bytes, head: bool) -> None:
    whole = b"ZS\x01" + data if head else data

    try:
        part = decode_part(whole)
    except CodecError:
        return
    assert encode_part(part) == whole


def test_parts_of_a_real_snapshot_carry_a_late_device_to_the_state(small_model: Callable[..., nn.Module]) -> None:
    late, base, now = (LatticeState(small_model(), "all", threads=1) for _ in range(3))
    now.apply([Update(2**63 + 5, 1e-3), Update(7, -3e-5)])
    parts = split_snapshot(
        encode_snapshot(base, now), base_id=1, client_id=2, server_round=9, checksum=now.checksum(), limit=100
    )
    assert len(parts) > 2

    apply_snapshot(late, b"".join(decode_part(encode_part(part)).data for part in parts))

    late.expect_checksum(parts[0].checksum)
