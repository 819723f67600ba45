"""Codecs of secure sums: exact round trips, and nothing but a CodecError, quickly, from any other bytes."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zo_common.errors import CodecError
from zo_common.secure_sum.messages import (
    Advertisement,
    Consent,
    Invitation,
    KeyList,
    MaskedInput,
    RevealedShares,
    RevealRequest,
    SealedShares,
    Sharers,
    Survivors,
)
from zo_common.secure_sum.node_keys import MOST_SIGNATURE_BYTES
from zo_common.secure_sum.terms import Terms

u64 = st.integers(0, 2**64 - 1)
key, session = st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16)
signature = st.binary(max_size=MOST_SIGNATURE_BYTES)
bitmap = st.binary(max_size=20)
terms = st.builds(
    Terms,
    run_id=session,
    server_round=st.integers(1, 2**32 - 1),
    length=st.integers(1, 1 << 22),
    threshold=st.floats(0.5, 0.99),
    neighbours=st.sampled_from([0, 4, 100, 65534]),
    weighted=st.booleans(),
    plan=key,
)


def _map(size: int) -> Any:
    return st.dictionaries(u64, st.binary(min_size=size, max_size=size), max_size=4)


@st.composite
def key_lists(draw: Any) -> KeyList:
    found = draw(session)
    ids = draw(st.lists(u64, unique=True, max_size=5).map(sorted))
    keys = tuple(Advertisement(found, c, draw(key), draw(key), draw(signature)) for c in ids)
    return KeyList(found, tuple(ids), keys)


MESSAGES: dict[type, Any] = {
    Invitation: st.builds(Invitation, terms),
    Advertisement: st.builds(Advertisement, session, u64, key, key, signature),
    KeyList: key_lists(),
    SealedShares: st.builds(SealedShares, session, u64, key, key, _map(114)),
    Sharers: st.builds(Sharers, session, bitmap, st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)),
    Survivors: st.builds(Survivors, session, bitmap),
    Consent: st.builds(Consent, session, u64, signature),
    RevealRequest: st.builds(RevealRequest, session, st.dictionaries(u64, signature, max_size=4), _map(114)),
    RevealedShares: st.builds(RevealedShares, session, u64, _map(33)),
}
masked = st.builds(MaskedInput, session, u64, arrays.arrays(np.uint64, st.integers(0, 9), elements=u64))
KINDS = [*MESSAGES, MaskedInput]


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_round_trip(kind: Any, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert kind.decode(message.encode()) == message


@settings(deadline=None)
@given(masked)
def test_round_trip_of_masked_vectors(message: MaskedInput) -> None:
    found = MaskedInput.decode(message.encode())
    assert (found.session, found.client_id) == (message.session, message.client_id)
    assert found.values.tobytes() == message.values.tobytes()
    assert len(message.encode()) == 32 + 8 * len(message.values)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_codec_error_or_another_message(kind: Any, data: st.DataObject) -> None:
    good = data.draw(masked if kind is MaskedInput else MESSAGES[kind]).encode()
    at = data.draw(st.integers(0, len(good)))
    junk = data.draw(st.binary(max_size=12))
    for bad in (good[:at], good[:at] + junk, good[:at] + junk + good[at + len(junk) :], junk):
        try:
            found = kind.decode(bad)
        except CodecError:
            continue
        assert kind.decode(found.encode()).encode() == found.encode()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_another_version_or_kind_is_refused(kind: Any) -> None:
    head = struct.pack("<2sBB", b"ZA", 1, kind.KIND) + bytes(60)
    with pytest.raises(CodecError, match="update the older side"):
        kind.decode(head)
    with pytest.raises(CodecError, match="expected"):
        kind.decode(struct.pack("<2sBB", b"ZA", 2, kind.KIND % 10 + 1) + bytes(60))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_huge_counts_allocate_nothing(kind: Any) -> None:
    for fill in (b"\xff", b"\x7f"):
        with pytest.raises(CodecError):
            kind.decode(struct.pack("<2sBB", b"ZA", 2, kind.KIND) + fill * 400)


def test_ids_out_of_order_or_twice_are_refused() -> None:
    entry = Advertisement(bytes(16), 5, bytes(32), bytes(32))
    for ids, keys in (((5, 5), ()), ((6, 5), ()), ((5,), (entry, entry))):
        with pytest.raises(CodecError, match="ascending"):
            KeyList.decode(KeyList(bytes(16), ids, keys).encode())


def test_sizes_as_documented() -> None:
    assert len(Invitation(Terms(bytes(16), 1, 1)).encode()) == 87
    assert len(Advertisement(bytes(16), 1, bytes(32), bytes(32), b"12345").encode()) == 93 + 5
    assert (
        len(SealedShares(bytes(16), 1, bytes(32), bytes(32), {1: bytes(114), 2: bytes(114)}).encode()) == 96 + 2 * 122
    )
    assert len(Sharers(bytes(16), bytes(3)).encode()) == 26 + 3
    assert len(Sharers(bytes(16), bytes(3), (4, 5)).encode()) == 26 + 3 + 2 * 4
    assert len(Survivors(bytes(16), bytes(3)).encode()) == 22 + 3
    assert len(Consent(bytes(16), 1, b"12").encode()) == 29 + 2
    assert len(RevealRequest(bytes(16), {1: b"1"}, {2: bytes(114)}).encode()) == 28 + 9 + 1 + 122
    assert len(RevealedShares(bytes(16), 1, {1: bytes(33)}).encode()) == 32 + 41
    keys = (Advertisement(bytes(16), 5, bytes(32), bytes(32), b"1"),)
    assert len(KeyList(bytes(16), (1, 5), keys).encode()) == 28 + 2 * 8 + 73 + 1


def test_an_invitation_whose_session_is_not_its_terms() -> None:
    data = Invitation(Terms(bytes(16), 1, 1)).encode()
    with pytest.raises(CodecError, match="not its terms"):
        Invitation.decode(data[:4] + bytes(16) + data[20:])
