"""States a run may end with: sums of its own contributions, exact where they undo, near the mean where they mix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import history, toy_engine

from server.guards.closing import Candidate, applied_records, averaged_rounds, to_average
from server.guards.logged_guard import negated
from zo_common.ledger.record import Record, all_updates


@pytest.mark.parametrize(("count", "averaged"), [(0, 0), (1, 0), (2, 2), (6, 2), (7, 3), (9, 3), (12, 4), (100, 34)])
def test_the_last_third_is_averaged(count: int, averaged: int) -> None:
    assert averaged_rounds(count) == averaged


def test_what_was_taken_back_is_not_in_the_weights() -> None:
    records = history(6)
    empty = Record(7, 0, ())
    kept = applied_records([*records, empty], [(2, 3), (5, 5)], after=1)
    assert [record.server_round for record in kept] == [4, 6]


@settings(max_examples=20, deadline=None)
@given(rounds=st.integers(2, 7), salt=st.integers(0, 99))
def test_the_average_is_the_mean_of_the_states(rounds: int, salt: int) -> None:
    engine, records = toy_engine(), history(rounds, salt)
    states = []
    for record in records:
        engine.state.apply(record.updates())
        states.append([t.weight.double().numpy().copy() for t in engine.state.tensors])

    contributions = to_average(records)
    engine.state.apply([u for c in contributions for u in c.updates()])

    directions = sum(c.coefficients.size for c in contributions)
    for index, tensor in enumerate(engine.state.tensors):
        mean = np.mean([state[index] for state in states], axis=0)
        assert np.abs(tensor.weight.double().numpy() - mean).max() <= directions * 2.0**tensor.grid_exponent
    engine.state.apply([u for c in contributions for u in c.updates()], sign=-1)
    assert engine.state.checksum() == records[-1].checksum


def test_negated_records_lead_back_exactly() -> None:
    engine, records = toy_engine(), history(5)
    engine.state.apply(all_updates(records))
    engine.state.apply([u for c in negated(tuple(records[2:])) for u in c.updates()])
    assert engine.state.checksum() == records[1].checksum


def test_a_state_without_a_finite_loss_is_never_the_best() -> None:
    assert Candidate("last", "", (), np.array([1.0, np.nan])).loss == float("inf")
    assert Candidate("last", "", (), np.array([1.0, 2.0])).loss == 1.5
