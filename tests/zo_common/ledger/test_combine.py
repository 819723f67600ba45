"""Dialect adapters are added, weighted and subtracted: exactly what sequential replay gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from zo_common.errors import LedgerError
from zo_common.lattice.fingerprint import fingerprint
from zo_common.lattice.state import LatticeState
from zo_common.ledger.combine import combine
from zo_common.ledger.ledger import Ledger, LedgerHeader, TensorEntry, decode_ledger, describe_tensors, encode_ledger
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.replay import replay, restore_state

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
Ledgers = Callable[..., Ledger]

u64 = st.integers(0, 2**64 - 1)
coefficients = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    elements=st.floats(-(2.0**-8), 2.0**-8, width=32),
)
contributions = st.lists(st.builds(Contribution, u64, u64, coefficients), max_size=2).map(tuple)
rounds = st.lists(contributions, max_size=3)
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def header(small_model: Models, header_of: Callable[..., LedgerHeader]) -> LedgerHeader:
    """Header of a run on the small model, all of it trained."""
    model = small_model()
    base = fingerprint(model)
    state = LatticeState(model, "all", threads=1)
    return header_of(fingerprint=base, base_checksum=state.checksum(), tensors=describe_tensors(state))


def _ledger(header: LedgerHeader, parts: list[Any], run_seed: int = 1) -> Ledger:
    records = tuple(Record(n, 7 * n, part) for n, part in enumerate(parts, 1))
    return Ledger(replace(header, run_seed=run_seed), records)


def _replayed(model: nn.Module, ledger: Ledger) -> nn.Module:
    # through bytes: what was combined must be a ledger that can be written and read
    ledger = decode_ledger(encode_ledger(ledger))
    replay(restore_state(model, ledger.header, threads=1), ledger)
    return model


@quick
@given(st.lists(rounds, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_combining_equals_sequential_replay_in_any_order(
    small_model: Models, weight_bytes: Reader, header: LedgerHeader, runs: list[Any], rng: Any
) -> None:
    ledgers = [_ledger(header, run) for run in runs]
    shuffled = rng.sample(ledgers, len(ledgers))
    sequential = small_model()
    state = restore_state(sequential, header, threads=1)
    for ledger in ledgers:
        for record in ledger.records:
            state.apply(record.updates())

    model = _replayed(small_model(), combine(shuffled, [1.0] * len(shuffled), "now"))

    assert weight_bytes(model) == weight_bytes(sequential)


@quick
@given(rounds, rounds)
def test_weight_minus_one_subtracts_to_the_bit(
    small_model: Models, weight_bytes: Reader, header: LedgerHeader, first: list[Any], second: list[Any]
) -> None:
    one, two = _ledger(header, first), _ledger(header, second)
    base = small_model()
    restore_state(base, header, threads=1)

    gone = _replayed(small_model(), combine([one, one], [1.0, -1.0], "now"))
    left = _replayed(small_model(), combine([one, two, one], [-1.0, 1.0, 1.0], "now"))
    alone = small_model()
    restore_state(alone, header, threads=1).apply(two.updates())

    assert weight_bytes(gone) == weight_bytes(base)
    assert weight_bytes(left) == weight_bytes(alone)


@quick
@given(rounds, st.floats(-2, 2))
def test_other_weights_scale_every_coefficient(
    small_model: Models, weight_bytes: Reader, header: LedgerHeader, run: list[Any], weight: float
) -> None:
    ledger = _ledger(header, run)
    scaled = small_model()
    state = restore_state(scaled, header, threads=1)
    for record in ledger.records:
        for contribution in record.contributions:
            state.apply(contribution.scaled(weight).updates())

    combined = combine([ledger], [weight], "now")

    assert weight_bytes(_replayed(small_model(), combined)) == weight_bytes(scaled)
    for record, original in zip(combined.records, ledger.records, strict=True):
        for found, old in zip(record.contributions, original.contributions, strict=True):
            expected = (old.coefficients.astype(np.float64) * weight).astype(np.float32)
            np.testing.assert_array_equal(found.coefficients, expected)


def test_rounds_are_numbered_anew_and_checksums_unknown(ledger_of: Ledgers) -> None:
    first, second = ledger_of(2), ledger_of(3, run_seed=5)

    combined = combine([first, second], [1.0, 0.5], "2027-01-01")

    assert [r.server_round for r in combined.records] == [1, 2, 3, 4, 5]
    assert {r.checksum for r in combined.records} == {0}
    assert [r.contributions for r in combined.records[:2]] == [r.contributions for r in first.records]
    assert combined.header.created == "2027-01-01"
    seeds = [{"run_seed": 2**63 - 1, "weight": 1.0}, {"run_seed": 5, "weight": 0.5}]
    assert combined.header.settings == {"combined": seeds}
    assert combined.header.exponents == first.header.exponents
    assert decode_ledger(encode_ledger(combined)) == combined


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"scale": "rms"}, "scale"),
        ({"fingerprint": "0" * 64}, "base model"),
        ({"tensors": (TensorEntry("b", (), -26, -3),)}, "trained tensors"),
    ],
)
def test_ledgers_that_do_not_fit_are_refused(ledger_of: Ledgers, fields: dict[str, Any], what: str) -> None:
    with pytest.raises(LedgerError, match=f"differ in {what}"):
        combine([ledger_of(1), ledger_of(1), ledger_of(1, **fields)], [1.0, 1.0, 1.0], "now")


def test_every_ledger_needs_its_weight(ledger_of: Ledgers) -> None:
    with pytest.raises(ValueError, match="shorter"):
        combine([ledger_of(1), ledger_of(1)], [1.0], "now")


def test_combining_does_not_change_its_parts(ledger_of: Ledgers) -> None:
    ledger = ledger_of(2)

    combine([ledger, ledger], [0.5, -1.0], "now")

    assert ledger == ledger_of(2)
