"""The ledger's bytes: round trips, and an error that fits for every kind of damage."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zo_common.errors import LedgerAltered, LedgerError, LedgerTruncated, ProtocolMismatch
from zo_common.lattice.state import LatticeState
from zo_common.ledger import ledger as ledger_module
from zo_common.ledger.ledger import (
    CHAIN_BYTES,
    MAGIC,
    PROTOCOL,
    Ledger,
    LedgerHeader,
    TensorEntry,
    decode_ledger,
    describe_tensors,
    encode_header,
    encode_ledger,
    require_same_base,
)

Headers = Callable[..., LedgerHeader]
Ledgers = Callable[..., Ledger]
PERSON = b"zo-asr/ledger/v1"
ENTRY_OVERHEAD = 4 + CHAIN_BYTES

names = st.text(min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
headers = st.builds(
    LedgerHeader,
    fingerprint=st.binary(min_size=32, max_size=32).map(bytes.hex),
    base_checksum=st.integers(0, 2**64 - 1),
    model=st.text(max_size=30),
    pattern=st.text(max_size=30),
    scale=st.sampled_from(["unit", "rms"]),
    epsilon=st.floats(1e-9, 1.0),
    estimator=st.sampled_from(["two-sided", "one-sided", "leave-one-out"]),
    run_seed=st.integers(0, 2**63 - 1),
    created=names,
    tensors=st.lists(
        st.builds(
            TensorEntry,
            names,
            st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
            st.integers(-40, 10),
            st.integers(-7, 7),
        ),
        max_size=4,
    ).map(tuple),
    settings=st.dictionaries(names, json_values, max_size=4),
)


@given(headers, st.integers(0, 3))
def test_ledgers_survive_the_round_trip(ledger_of: Ledgers, header: LedgerHeader, rounds: int) -> None:
    ledger = Ledger(header, ledger_of(rounds).records)

    assert decode_ledger(encode_ledger(ledger)) == ledger


def test_the_layout_is_the_documented_one(ledger_of: Ledgers) -> None:
    """Read by hand, with the standard library alone."""
    ledger = ledger_of(2)
    data = encode_ledger(ledger)

    magic, protocol, length = struct.unpack_from("<8sHI", data)
    at = 14 + length
    header = json.loads(zlib.decompress(data[14:at]))
    chain = hashlib.blake2b(data[:at], digest_size=16, person=PERSON).digest()

    assert (magic, protocol) == (MAGIC, PROTOCOL) == (b"ZOLEDGER", 1)
    assert header["fingerprint"] == ledger.header.fingerprint
    assert data[at : at + 16] == chain
    at += 16
    for record in ledger.records:
        (size,) = struct.unpack_from("<I", data, at)
        body = data[at + 4 : at + 4 + size]
        chain = hashlib.blake2b(chain + body, digest_size=16, person=PERSON).digest()
        assert struct.unpack_from("<IQ", body) == (record.server_round, record.checksum)
        assert data[at + 4 + size : at + 20 + size] == chain
        at += 20 + size
    assert at == len(data)


def test_rounds_are_found_by_number(ledger_of: Ledgers) -> None:
    ledger = ledger_of(4)

    assert (ledger.last_round, ledger_of(0).last_round) == (4, 0)
    assert [r.server_round for r in ledger.since(2)] == [3, 4]
    assert ledger.since(0) == ledger.records
    assert ledger.since(4) == ledger.since(9) == ()
    assert ledger.updates() == [u for r in ledger.records for u in r.updates()]
    assert len(ledger.updates()) == 4 * 7


def test_what_a_header_derives(header_of: Headers, small_model: Callable[..., nn.Module]) -> None:
    header = header_of()
    state = LatticeState(small_model(), "0.*", "rms", threads=1)

    assert header.base_id == 0x0123456789ABCDEF
    assert header.exponents == {"a.weight": (-24, 0), "b": (-26, -3)}
    assert header_of(tensors=describe_tensors(state)).exponents == state.exponents
    assert [t.shape for t in describe_tensors(state)] == [(11,), (11, 3)]


def test_every_truncation_within_the_header(header_of: Headers) -> None:
    data, _ = encode_header(header_of())

    for length in range(len(data)):
        with pytest.raises(LedgerTruncated):
            decode_ledger(data[:length])


def test_every_truncation_within_a_record(ledger_of: Ledgers) -> None:
    ledger = ledger_of(3)
    data = encode_ledger(ledger)
    ends = [len(encode_ledger(replace(ledger, records=ledger.records[:n]))) for n in range(4)]

    for length in range(ends[0], len(data)):
        if length in ends:
            assert decode_ledger(data[:length]).last_round == ends.index(length)
        else:
            within = sum(length > end for end in ends)
            with pytest.raises(LedgerTruncated, match=f"ends within round {within}"):
                decode_ledger(data[:length])


def test_every_altered_byte_is_an_error(ledger_of: Ledgers) -> None:
    data = encode_ledger(ledger_of(2))

    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            with pytest.raises((LedgerError, ProtocolMismatch)):
                decode_ledger(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])


def test_another_protocol_version(ledger_of: Ledgers) -> None:
    data = encode_ledger(ledger_of(1))

    with pytest.raises(ProtocolMismatch, match="protocol version 2, this program speaks 1: use a matching release"):
        decode_ledger(data[:8] + b"\x02\x00" + data[10:])


@pytest.mark.parametrize("data", [b"RIFF....WAVEfmt ", b"\0" * 64, b"PK\x03\x04" + bytes(60)])
def test_not_a_ledger(data: bytes) -> None:
    with pytest.raises(LedgerAltered, match="is it the right file"):
        decode_ledger(data)


def _with_header(body: bytes) -> bytes:
    """A file whose chain holds, whatever its header is."""
    data = MAGIC + struct.pack("<HI", PROTOCOL, len(body)) + body
    return data + hashlib.blake2b(data, digest_size=16, person=PERSON).digest()


def test_a_header_that_unpacks_without_end_is_bounded() -> None:
    bomb = zlib.compress(b" " * (80 << 20), 1)

    with pytest.raises(LedgerAltered, match="header cannot be read"):
        decode_ledger(_with_header(bomb))


def test_the_bound_of_a_header_is_exact(header_of: Headers, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = encode_header(header_of())
    size = len(zlib.decompress(data[14:-CHAIN_BYTES]))

    monkeypatch.setattr(ledger_module, "MAX_HEADER", size + 1)
    assert decode_ledger(data).header == header_of()
    monkeypatch.setattr(ledger_module, "MAX_HEADER", size - 1)
    with pytest.raises(LedgerAltered):
        decode_ledger(data)


def _header_json(header: LedgerHeader, **fields: Any) -> str:
    data, _ = encode_header(header)
    return json.dumps(json.loads(zlib.decompress(data[14:-CHAIN_BYTES])) | fields)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"tensors": []}', '{"tensors": 3}', "\ud800"])
def test_headers_that_are_not_one(text: str) -> None:
    with pytest.raises(LedgerAltered, match="header cannot be read"):
        decode_ledger(_with_header(zlib.compress(text.encode(errors="surrogatepass"))))


@pytest.mark.parametrize("fields", [{"fingerprint": "xyz"}, {"unknown": 1}, {"tensors": [{"name": "a"}]}])
def test_fields_that_no_header_has(header_of: Headers, fields: dict[str, Any]) -> None:
    with pytest.raises(LedgerAltered, match="header cannot be read"):
        decode_ledger(_with_header(zlib.compress(_header_json(header_of(), **fields).encode())))


@pytest.mark.parametrize("text", ['"text"', "7", "null", "[" * 100_000], ids=["text", "number", "null", "nested"])
def test_crafted_headers_that_are_not_one(text: str) -> None:
    with pytest.raises(LedgerAltered):
        decode_ledger(_with_header(zlib.compress(text.encode())))


def test_a_crafted_infinite_exponent(header_of: Headers) -> None:
    tensor = {"name": "a", "shape": [1], "grid_exponent": float("inf"), "scale_exponent": 0}

    with pytest.raises(LedgerAltered):
        decode_ledger(_with_header(zlib.compress(_header_json(header_of(), tensors=[tensor]).encode())))


def test_rounds_must_count_up_from_one(ledger_of: Ledgers) -> None:
    first, second, third = ledger_of(3).records

    for records in ((second,), (first, third), (first, first), (second, first), (first, second, second)):
        with pytest.raises(LedgerAltered, match="stands where round"):
            decode_ledger(encode_ledger(ledger_of(0).__class__(ledger_of(0).header, records)))


def test_records_cannot_be_moved_dropped_or_taken_from_another_ledger(ledger_of: Ledgers) -> None:
    ledger, other = ledger_of(3), ledger_of(3, created="later")
    ends = [len(encode_ledger(replace(ledger, records=ledger.records[:n]))) for n in range(4)]
    data = encode_ledger(ledger)
    head, *entries = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    foreign = encode_ledger(other)[len(encode_header(other.header)[0]) :]

    for forged in (head + entries[1], head + entries[0] + entries[2], head + entries[1] + entries[0], head + foreign):
        with pytest.raises(LedgerAltered, match="does not match its hash chain"):
            decode_ledger(forged)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"fingerprint": "f" * 64}, "base model"),
        ({"tensors": (TensorEntry("a.weight", (3, 11), -24, 0),)}, "trained tensors"),
        ({"tensors": (TensorEntry("a.weight", (3, 11), -23, 0), TensorEntry("b", (), -26, -3))}, "trained tensors"),
        ({"scale": "rms"}, "scale"),
    ],
)
def test_ledgers_of_different_bases_do_not_join(header_of: Headers, fields: dict[str, Any], what: str) -> None:
    with pytest.raises(LedgerError, match=f"differ in {what}"):
        require_same_base(header_of(), header_of(**fields))


def test_run_settings_do_not_keep_ledgers_apart(header_of: Headers) -> None:
    other = header_of(run_seed=1, created="x", model="y", settings={}, epsilon=1.0, pattern="z")

    require_same_base(header_of(), other)  # raises nothing

    assert other != header_of()
