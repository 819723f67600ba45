"""Contributions and records list replayable updates."""

from __future__ import annotations

import numpy as np

from zo_common.directions.seeds import direction_seed
from zo_common.lattice.update import Update
from zo_common.ledger.record import Contribution, Record, all_updates
from zo_common.ledger.record_codec import encode_record

COEFFICIENTS = np.array([[1.5, -2.0, 0.25], [3.0, 0.0, -1.0]], np.float32)


def test_updates_pair_every_direction_with_its_coefficient() -> None:
    contribution = Contribution(99, 4, COEFFICIENTS)

    assert contribution.updates() == [
        Update(direction_seed(99, step, query), float(COEFFICIENTS[step, query]))
        for step in range(2)
        for query in range(3)
    ]


def test_scaling_rounds_once_to_float32() -> None:
    coefficients = np.array([[0.1, 1e-30, -7.7]], np.float32)

    scaled = Contribution(1, 2, coefficients).scaled(1 / 3)

    expected = [np.float32(float(c) * (1 / 3)) for c in coefficients[0]]
    assert scaled.coefficients.dtype == np.float32
    assert scaled.coefficients[0].tolist() == [float(c) for c in expected]
    assert (scaled.seed, scaled.client_id) == (1, 2)


def test_equality_compares_the_coefficients() -> None:
    contribution = Contribution(1, 2, COEFFICIENTS)

    assert contribution == Contribution(1, 2, COEFFICIENTS.copy())
    assert hash(contribution) == hash(Contribution(1, 2, COEFFICIENTS.copy()))
    assert contribution != Contribution(1, 3, COEFFICIENTS)
    assert contribution != Contribution(1, 2, COEFFICIENTS + np.float32(1))
    assert contribution != "something else"


def test_several_rounds_replay_as_one_list() -> None:
    first = Record(1, 0, (Contribution(1, 1, COEFFICIENTS), Contribution(2, 2, COEFFICIENTS[:1])))
    second = Record(2, 0, (Contribution(3, 1, COEFFICIENTS),))

    assert all_updates([first, second]) == first.updates() + second.updates()
    assert len(first.updates()) == 9


def test_equality_is_bit_for_bit() -> None:
    zero, minus, nan = (Contribution(1, 2, np.array([[value]], np.float32)) for value in (0.0, -0.0, np.nan))

    assert zero != minus
    assert nan == Contribution(1, 2, np.array([[np.nan]], np.float32))
    assert zero != Contribution(1, 2, np.zeros((1, 2), np.float32))
    assert Record(1, 0, (zero,)) != Record(1, 0, (minus,))
    assert encode_record(Record(1, 0, (zero,))) != encode_record(Record(1, 0, (minus,)))
