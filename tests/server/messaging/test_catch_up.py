"""How a device that is behind comes to the present round: one plan, pieces of the ledger, or a snapshot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.messaging.catch_up import CatchUp
from zo_common.estimator.settings import EstimatorConfig
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.record_codec import encode_record
from zo_common.ledger.snapshot import decode_part
from zo_common.wire.plan import Plan, decode_plan


def _record(server_round: int, queries: int = 4) -> Record:
    scalars = np.full((1, queries), server_round, np.float32)
    return Record(server_round, 1000 + server_round, (Contribution(server_round, 1, scalars),))


def _plan(server_round: int) -> Plan:
    return Plan(server_round, 5, 1, 9, 999 + server_round, 1, 2, 0.1, EstimatorConfig("two-sided", 4, 0.01))


def _history(rounds: int, limit: int, queries: int = 4) -> tuple[CatchUp, tuple[Record, ...]]:
    records = tuple(_record(r, queries) for r in range(1, rounds + 1))
    catch_up = CatchUp(limit, weights=1 << 30, snapshot=None)
    catch_up.begin_round(records)
    return catch_up, records


def test_a_device_that_lacks_little_gets_it_with_the_plan() -> None:
    catch_up, records = _history(5, limit=1 << 20)

    out = catch_up.next(_plan(6), have=3)

    assert out.final
    assert out.key == "plan"
    assert decode_plan(out.payload).records == records[3:]


def test_a_device_that_lacks_nothing_gets_the_plan_alone() -> None:
    catch_up, _ = _history(5, limit=1 << 20)

    plan = decode_plan(catch_up.next(_plan(6), have=5).payload)

    assert plan.records == ()
    assert plan.server_round == 6


@given(rounds=st.integers(1, 30), have=st.integers(0, 30), limit=st.integers(1, 400), queries=st.integers(1, 9))
def test_pieces_are_bounded_consecutive_and_complete(rounds: int, have: int, limit: int, queries: int) -> None:
    have = min(have, rounds)
    catch_up, records = _history(rounds, limit, queries)
    got: list[Record] = []
    for _ in range(rounds + 1):
        out = catch_up.next(_plan(rounds + 1), have + len(got))
        piece = decode_plan(out.payload)
        assert sum(len(encode_record(r)) + 4 for r in piece.records) <= limit or len(piece.records) == 1
        got += piece.records
        if out.final:
            break
        assert piece.checksum == piece.records[-1].checksum
        assert piece.server_round == piece.records[-1].server_round + 1
    assert out.final
    assert tuple(got) == records[have:]
    assert piece.checksum == 1000 + rounds


@pytest.mark.parametrize("limit", [60, 100, 1 << 20])
def test_a_snapshot_where_it_is_smaller(limit: int) -> None:
    made: list[int] = []

    def snapshot() -> bytes:
        made.append(1)
        return bytes(range(200)) * 2

    catch_up = CatchUp(limit, weights=100, snapshot=snapshot)
    catch_up.begin_round(tuple(_record(r) for r in range(1, 41)))
    data = b""
    for _ in range(100):
        out = catch_up.next(_plan(41), have=0)
        assert not out.final
        part = decode_part(out.payload)
        assert len(out.payload) <= limit
        assert (part.server_round, part.checksum, part.client_id) == (40, 1040, 1)
        data += part.data
        if part.part == part.parts - 1:
            break

    assert data == bytes(range(200)) * 2
    assert catch_up.next(_plan(41), have=40).final
    assert made == [1]


def test_a_snapshot_that_is_larger_is_not_sent_and_made_once_a_round() -> None:
    made: list[int] = []

    def snapshot() -> bytes:
        made.append(1)
        return bytes(100_000)

    catch_up = CatchUp(1 << 20, weights=100, snapshot=snapshot)
    catch_up.begin_round(tuple(_record(r) for r in range(1, 41)))

    for client in range(3):
        out = catch_up.next(_plan(41), have=client)
        assert (out.key, out.final) == ("plan", True)
    assert made == [1]


def test_a_short_history_makes_no_snapshot() -> None:
    def snapshot() -> bytes:
        raise AssertionError

    catch_up = CatchUp(1 << 20, weights=1_000_000, snapshot=snapshot)
    catch_up.begin_round(tuple(_record(r) for r in range(1, 41)))

    assert catch_up.next(_plan(41), have=0).final


def test_a_snapshot_goes_on_in_the_next_round_and_begins_anew_when_the_device_lost_it() -> None:
    catch_up = CatchUp(100, weights=100, snapshot=lambda: bytes(400))
    records = tuple(_record(r) for r in range(1, 42))
    catch_up.begin_round(records[:40])
    parts = [decode_part(catch_up.next(_plan(41), have=0).payload) for _ in range(3)]
    assert [p.part for p in parts] == [0, 1, 2]

    catch_up.begin_round(records)
    fourth = decode_part(catch_up.next(_plan(42), have=0).payload)
    assert (fourth.part, fourth.server_round, fourth.checksum) == (3, 40, 1040)

    catch_up.start_over(1)
    first = decode_part(catch_up.next(_plan(42), have=0).payload)
    assert (first.part, first.server_round, first.checksum) == (0, 41, 1041)

    last = catch_up.next(_plan(42), have=41)
    assert last.final
