"""Attack × rule on a quadratic: resistance as the rules state it, the mean's failures, and who is found out."""

from __future__ import annotations

from typing import Any

import pytest
from quadratic import QuadraticCrowd

from benchmarks.hostile.attackers import measure, parse
from benchmarks.hostile.rounds import Outcome, Setting, run, slope
from simulations.attacks import ATTACKS
from zo_common.aggregation.robust import AGGREGATIONS

DEVICES = 12
RATE = 4.0


@pytest.fixture(scope="module")
def crowd() -> QuadraticCrowd:
    return QuadraticCrowd(DEVICES)


@pytest.fixture(scope="module")
def outcomes(crowd: QuadraticCrowd) -> Any:
    """Outcomes at 25 % hostile devices by attack and rule, each run once."""
    known: dict[tuple[str, str], Outcome] = {}

    def find(attack: Any, aggregation: Any) -> Outcome:
        if (attack, aggregation) not in known:
            base = Setting("none", "mean", 0.0, 3, 30, 16, 4, 1e-3, RATE, RATE)
            vote_rate = RATE * slope(crowd, base)
            setting = Setting(attack, aggregation, 0.25, 3, 30, 16, 4, 1e-3, RATE, vote_rate)
            known[attack, aggregation] = run(crowd, setting)
        return known[attack, aggregation]

    return find


def _loss(outcome: Outcome) -> float:
    """Against the loss before; what the lattice could not hold is infinite."""
    return float("inf") if outcome.left_lattice else outcome.after["loss"] / outcome.before["loss"]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_rule_learns_where_nobody_is_hostile(outcomes: Any, aggregation: str) -> None:
    assert _loss(outcomes("none", aggregation)) < 0.1


@pytest.mark.parametrize("attack", ATTACKS[1:])
@pytest.mark.parametrize("aggregation", ["median", "trimmed-mean", "multi-krum", "sign-vote"])
def test_these_rules_still_learn_with_a_quarter_hostile(outcomes: Any, attack: str, aggregation: str) -> None:
    assert _loss(outcomes(attack, aggregation)) < 0.15


@pytest.mark.parametrize("attack", ["sign-flip", "large", "random", "label-flip"])
def test_krum_resists_what_is_far_from_the_honest(outcomes: Any, attack: str) -> None:
    assert _loss(outcomes(attack, "krum")) < 0.15


def test_clipping_bounds_large_scalars_that_ruin_the_mean(outcomes: Any) -> None:
    assert _loss(outcomes("large", "mean")) > 1
    assert _loss(outcomes("large", "norm-clipping")) < 0.25


@pytest.mark.parametrize("attack", ["sign-flip", "large", "label-flip"])
def test_the_mean_loses_where_a_median_does_not(outcomes: Any, attack: str) -> None:
    mean, median = (_loss(outcomes(attack, rule)) for rule in ("mean", "median"))
    assert mean > 2.5 * median
    assert mean > 5 * _loss(outcomes("none", "mean"))


@pytest.mark.parametrize("attack", ["sign-flip", "large", "random", "colluding", "label-flip", "free-rider"])
def test_hostile_devices_are_reported_and_honest_ones_are_not(outcomes: Any, attack: str) -> None:
    outcome = outcomes(attack, "median")
    assert (outcome.found, outcome.accused) == (3, 0)


def test_nobody_is_reported_where_nobody_is_hostile(outcomes: Any) -> None:
    assert outcomes("none", "median").accused == outcomes("none", "sign-vote").accused == 0


def test_a_setting_gives_the_same_again(crowd: QuadraticCrowd, outcomes: Any) -> None:
    setting = Setting("random", "median", 0.25, 3, 30, 16, 4, 1e-3, RATE, RATE)
    assert run(crowd, setting).after == outcomes("random", "median").after


def test_the_table_has_every_cell_and_goes_on_where_it_was_stopped(tmp_path: Any) -> None:
    words = "--model m --data d --rounds 2 --queries 4 --seeds 0 1 --attacks large --aggregations mean krum"
    arguments = parse([*words.split(), "--work", str(tmp_path / "work.jsonl")])
    numbers = measure(arguments, QuadraticCrowd(8), "test")
    cells = {(c["aggregation"], c["attack"], c["share"]): c for c in numbers["cells"]}
    expected = {(rule, *what) for rule in ("mean", "krum") for what in (("none", 0.0), ("large", 0.1), ("large", 0.25))}
    assert set(cells) == expected
    assert len(cells["mean", "none", 0.0]["loss"]["values"]) == 2
    assert cells["mean", "large", 0.25]["hostile"] == 4

    class Idle(QuadraticCrowd):
        def move(self, record: Any) -> None:
            raise AssertionError("all of it is known")

    assert measure(arguments, Idle(8), "test")["cells"] == numbers["cells"]
