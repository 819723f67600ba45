"""WER against ε on devices of a millisecond: what is planned is what is run, and what is done is not done again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from quadratic import QuadraticCrowd

from benchmarks.harness.rows import RESULTS
from benchmarks.hostile.rounds import Setting
from benchmarks.hostile.rounds import run as hostile_run
from benchmarks.privacy.rounds import Outcome, run
from benchmarks.privacy.slopes import Slopes, devices_for, measure_slopes, price
from benchmarks.privacy.utility import Cell, cells, measure, parse, plain_config, private_config
from zo_common.config.run import RunConfig
from zo_common.lattice.trained import DEFAULT
from zo_common.privacy.accountant import Release, epsilon_spent, noise_for
from zo_common.privacy.plan import GRADIENT_SQUARE, GRADIENT_VARIANCE

DEVICES = 12
SLOPES = Slopes(1e-3, 1e-2)


def config(**others: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "num_server_rounds": 12,
        "num_queries": 8,
        "batch_size": 4,
        "learning_rate": 4.0,
        "directions": "shared",
        "weighting": "uniform",
        "noise_by": "server",
        "target_delta": 1e-3,
        "run_seed": 3,
    }
    return RunConfig(**(settings | others))


def arguments(*words: str) -> Any:
    parsed = parse(["--rounds", "6", "--learning-rate", "4", "--partition-by", "iid", "--probes", "12", *words])
    parsed.model, parsed.data = "model", "speech"
    return parsed


class TestRun:
    def test_without_privacy_it_is_the_plain_mean_to_the_bit(self) -> None:
        crowd = QuadraticCrowd(DEVICES)
        setting = Setting("none", "mean", 0.0, 3, 12, 8, 4, 1e-3, 4.0, 4.0)

        ours, plain = run(crowd, config()), hostile_run(crowd, setting)

        assert ours.after == plain.after
        assert (ours.noise_multiplier, ours.epsilon, ours.left_lattice) == (0.0, 0.0, 0)

    def test_noise_is_the_accountants_and_no_more_than_the_target_is_spent(self) -> None:
        private = config(privacy="device", target_epsilon=8.0, clip_norm=0.1)

        outcome = run(QuadraticCrowd(DEVICES), private)

        assert outcome.noise_multiplier == noise_for(8.0, 1e-3, 12)
        assert outcome.epsilon == epsilon_spent({Release(outcome.noise_multiplier): 12}, 1e-3)
        assert 7.5 < outcome.epsilon <= 8.0

    def test_noise_so_small_that_it_hides_nothing_changes_nothing_much(self) -> None:
        crowd = QuadraticCrowd(DEVICES)
        private = config(privacy="device", target_epsilon=1e9, noise_multiplier=0.05, clip_norm=1e-1)

        assert run(crowd, private).after["loss"] == pytest.approx(run(crowd, config()).after["loss"], rel=0.2)

    def test_noise_of_a_small_target_undoes_the_learning_of_few_devices(self) -> None:
        crowd = QuadraticCrowd(DEVICES)
        private = config(privacy="device", target_epsilon=0.5, clip_norm=0.1)

        outcome = run(crowd, private)

        assert outcome.left_lattice or outcome.after["loss"] > 2 * run(crowd, config()).after["loss"]


class TestPlanning:
    def test_slopes_are_those_of_the_devices_answers(self) -> None:
        crowd = QuadraticCrowd(2000)
        probe = config(batch_size=1, num_queries=512)

        slopes = measure_slopes(crowd, probe)

        # gradient −0.1/24 a weight, noise 0.05/24 a weight, directions of 24 signs
        assert slopes.gradient_square == pytest.approx(24 * (0.1 / 24) ** 2, rel=0.25)
        assert slopes.gradient_variance == pytest.approx(24 * (0.05 / 24) ** 2, rel=0.1)

    def test_the_noise_that_is_planned_is_the_noise_that_is_run(self) -> None:
        parsed = arguments("--devices", "12")
        cell = Cell("device", 8.0, DEVICES)
        base = plain_config(parsed, DEVICES)
        cost = price(cell.level, cell.target, base, DEVICES, 10, SLOPES)

        chosen = private_config(cell, base, cost)
        outcome = run(QuadraticCrowd(DEVICES), chosen)

        assert outcome.noise_multiplier == cost.noise_multiplier
        assert chosen.clip_norm == cost.clip_norm == cost.usual_norm
        assert chosen.learning_rate == base.learning_rate * cost.learning_rate_factor < base.learning_rate
        assert private_config(Cell("none", math.inf, DEVICES), base, None) == base

    def test_noise_of_the_example_level_shrinks_in_the_mean_of_devices(self) -> None:
        one, many = (price("example", 8.0, config(batch_size=2), n, 20, SLOPES) for n in (1, 16))

        assert many.noise_std == pytest.approx(one.noise_std / 4)
        assert many.noise_multiplier == one.noise_multiplier
        assert many.slow_down < one.slow_down
        assert many.learning_rate_factor == 1 / many.slow_down

    def test_more_devices_bear_a_smaller_target(self) -> None:
        few, many = (devices_for(target, config(batch_size=1), SLOPES) for target in (8.0, 2.0))

        assert few["slow_down"] <= 2 and many["slow_down"] <= 2
        assert 2 < few["devices"] < many["devices"]
        half = int(few["devices"]) // 2
        assert price("device", 8.0, config(batch_size=1), half, 1, SLOPES).slow_down > 2

    def test_counts_of_devices_hear_as_many_utterances_a_round(self) -> None:
        parsed = parse(["--utterances", "64"])
        parsed.model, parsed.data = "model", "speech"
        found = {cell.devices: plain_config(parsed, cell.devices) for cell in cells(parsed)}

        assert {devices: c.batch_size for devices, c in found.items()} == {8: 8, 64: 1}
        assert {devices: c.partition_by for devices, c in found.items()} == {8: "speaker", 64: "round-robin"}


def crowd_of(config: RunConfig, devices: int) -> QuadraticCrowd:
    return QuadraticCrowd(devices)


def run_of(config: RunConfig, devices: int) -> Outcome:
    return run(QuadraticCrowd(devices), config)


def idle(config: RunConfig, devices: int) -> Outcome:
    raise AssertionError("all of it is known")


class TestTable:
    def test_it_has_every_cell_and_goes_on_where_it_was_stopped(self, tmp_path: Path) -> None:
        work = tmp_path / "deep" / "work.jsonl"
        words = ("--devices", "8", "12", "--targets", "inf", "8", "--seeds", "0", "1", "--work", str(work))
        numbers = measure(arguments(*words), crowd_of, run_of)

        found = {(c["level"], c["target"], c["devices"]): c for c in numbers["cells"]}
        assert set(found) == {("none", None, n) for n in (8, 12)} | {("device", 8.0, n) for n in (8, 12)}
        assert all(len(c["loss"]["values"]) == 2 for c in found.values())
        assert found["none", None, 8]["loss"]["mean"] < found["none", None, 8]["before"]["loss"]

        with work.open("a") as file:
            file.write('{"key": "torn')
        assert measure(arguments(*words), crowd_of, idle) == numbers
        more = measure(arguments(*words[:-2], "2", *words[-2:]), crowd_of, run_of)
        assert all(len(c["loss"]["values"]) == 3 for c in more["cells"])
        assert measure(arguments(*words), crowd_of, idle) == numbers

    def test_other_settings_are_run_anew(self, tmp_path: Path) -> None:
        words = ("--devices", "8", "--targets", "inf", "--seeds", "0", "--work", str(tmp_path / "work.jsonl"))
        once = measure(arguments(*words), crowd_of, run_of)
        other = measure(arguments(*words, "--rounds", "3"), crowd_of, run_of)
        assert once["cells"][0]["loss"] != other["cells"][0]["loss"]

    def test_both_levels_can_be_asked_for(self) -> None:
        asked = list(cells(parse(["--levels", "device", "example", "--devices", "8"])))
        assert asked == [Cell("none", math.inf, 8)] + [
            Cell(level, target, 8) for target in (8.0, 2.0) for level in ("device", "example")
        ]


def test_a_config_of_a_crowd_is_the_runs_without_its_seed() -> None:
    """What `measure` builds a crowd with: recordings are the same for all seeds."""
    parsed = arguments("--devices", "8")
    assert replace(plain_config(parsed, 8, 5), run_seed=0) == plain_config(parsed, 8, 0)


def test_the_planner_knows_the_default_tensors() -> None:
    """Its figures are those of the committed rows."""
    rows = json.loads((RESULTS / "privacy_planned.json").read_text())["rows"]
    slopes = next(row["slopes"] for row in rows if row["tensors"] == DEFAULT)

    assert pytest.approx(slopes["gradient_square"], rel=0.02) == GRADIENT_SQUARE
    assert pytest.approx(slopes["gradient_variance"], rel=0.02) == GRADIENT_VARIANCE
