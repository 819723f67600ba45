"""The measured step: the best of a quadratic model, deaf to one liar, within a factor of two of the rounds before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import listen
from step_replies import Replies, numbers_of

from server.guards.guard import Progress
from server.rounds.federation import Federation
from server.rounds.pooled_curvature import averaged, history, pooled
from server.rounds.private_step import step_size
from server.rounds.step_size import LOG_NAME, FixedStep, MeasuredStep, best_coefficient
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.estimator.curvature import Curvature, RelativeCurvature
from zo_common.ledger.ledger import Ledger, LedgerHeader, TensorEntry
from zo_common.ledger.record import Record

Settings = Callable[..., RunConfig]
Federate = Callable[..., Federation]


def _ledger(rounds: int, grid: int = -20) -> Ledger:
    tensors = (TensorEntry("w", (3,), grid, 0), TensorEntry("x", (3,), grid + 4, 0))
    header = LedgerHeader("00" * 32, 0, "m", "all", "unit", 1e-3, "two-sided", 0, "now", tensors)
    return Ledger(header, tuple(Record(number, 0, ()) for number in range(1, rounds + 1)))


@pytest.fixture
def measured(tmp_path: Path) -> Callable[..., tuple[MeasuredStep, list[str]]]:
    """A measured step of a new run, and the words it says."""

    def make(**changes: Any) -> tuple[MeasuredStep, list[str]]:
        return MeasuredStep(RunConfig(output=str(tmp_path), **changes)), listen("server.rounds.step_size")

    return make


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("left_out", [0, 4])
@pytest.mark.parametrize("devices", [1, 3])
def test_the_coefficient_is_the_best_of_a_quadratic_model(shared: bool, left_out: int, devices: int) -> None:
    """Minimum of E[L(w − α Σ ĝ_j z_j)] for L of known gradient and Hessian, by drawing rounds."""
    rng, width, q, noise = np.random.default_rng(0), 60, 4, 0.15
    jacobian = rng.standard_normal((12, width)) / math.sqrt(width)
    gradient, hessian = rng.standard_normal(width) / 8 + jacobian[0], jacobian.T @ jacobian
    slopes, curves, squares, noises = [], [], [], []
    for _ in range(6000):
        step, common = np.zeros(width), rng.standard_normal((q, width))
        for _ in range(devices):
            directions = common if shared else rng.standard_normal((q, width))
            spread = noise * rng.standard_normal(width)
            grads = directions @ (gradient + spread)
            if left_out:
                grads = (grads - grads.mean()) * q / (q - 1)
            squares.append(np.square(grads).mean())
            noises.append(noise**2 * width * (q / (q - 1) if left_out else 1))
            step += directions.T @ grads / (devices if shared else 1)
        slopes.append(gradient @ step)
        curves.append(step @ hessian @ step)
    best = np.mean(slopes) / np.mean(curves)
    m = np.mean(squares)
    numbers = RelativeCurvature(
        float(np.trace(hessian)),
        float(gradient @ hessian @ gradient / m),
        float(noise**2 * np.trace(hessian) / m),
        float(np.mean(noises) / m),
    )

    directions = q if shared else q * devices
    found = best_coefficient(numbers, directions=directions, devices=devices, shared=shared, left_out=left_out)

    assert found == pytest.approx(best, rel=0.05)


def test_the_learning_rate_is_that_of_a_mean_over_directions_and_devices(measured: Any) -> None:
    found = Replies([numbers_of()] * 3)
    independent, _ = measured(num_queries=8)
    shared, _ = measured(num_queries=8, directions="shared")
    several, _ = measured(num_queries=8, local_steps=2)

    alpha = (7 / 8) * 0.75 / (200 + (24 + 8 / 7) * (8 + 1 / 3))
    assert independent.used(1, found, 1) == pytest.approx(alpha * 24)
    alpha = (7 / 8) * 0.75 / ((0.75 + 0.25 / 3) * 200 + (8 + 8 / 7) * (8 + 1 / 3))
    assert shared.used(1, found, 1) == pytest.approx(alpha * 8)
    alpha = (7 / 8) * 0.75 / (200 + (48 + 8 / 7) * (8 + 1 / 3))
    assert several.used(1, found, 1) == pytest.approx(alpha * 24)
    assert all(rate == float(np.float32(rate)) for rate in [independent.used(2, found, 2)])


def test_numbers_of_fixed_runs_are_what_the_schedule_says() -> None:
    config = RunConfig(learning_rate=0.4, num_server_rounds=4)
    fixed = step_size(config, None)

    assert isinstance(fixed, FixedStep)
    assert fixed.planned(2) == fixed.used(2, Replies([]), 2) == float(np.float32(0.3))
    votes = {"directions": "shared", "weighting": "uniform", "aggregation": "sign-vote", "min_replies": 3}
    assert step_size(replace(config, **votes), None).planned(2) == 0.0  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    honest=st.lists(
        st.tuples(st.floats(1, 2), st.floats(1, 2), st.floats(1, 2), st.floats(1, 2)), min_size=2, max_size=8
    ),
    lie=st.tuples(
        st.floats(0, 3.4e38), st.floats(-3.4e38, 3.4e38), st.floats(-3.4e38, 3.4e38), st.floats(0, 3.4e38)
    ),
    square=st.sampled_from([0.0, 1e-90, 1e-6, 1.0, 1e12]),
    shared=st.booleans(),
    scale=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_no_device_moves_the_step_by_more_than_a_factor_of_two(
    honest: list[tuple[float, ...]], lie: tuple[float, ...], square: float, shared: bool, scale: float
) -> None:
    """Honest devices call for steps within a factor of two of each other; one of three or more sends any numbers."""
    config = RunConfig(directions="shared" if shared else "independent", output="/nowhere")
    base = [RelativeCurvature(200 * scale, 8 * scale * a, scale * b, 0.25 * c) for a, b, c, _ in honest]
    true = [each for each in base if math.isclose(_rate(each, config), _rate(base[0], config), rel_tol=0.99)]
    others = [_rate(each, config, len(true) + 1) for each in true]
    if len(true) < 2 or max(others) > 2 * min(others):
        return
    liar = Curvature(*lie).relative(square)

    step = MeasuredStep(config)
    step._write = lambda row: None  # type: ignore[method-assign]
    replies = Replies([*true, *([liar] if liar is not None else [])])
    used = step.used(1, replies, 1)

    among = [_rate(each, config, replies.accepted) for each in true]
    # the standard errors of several devices make the honest step smaller than any of theirs
    honest_step = step._rate(averaged([pooled(true)]), replies.accepted, 1)
    assert min(*among, honest_step) / 2 * (1 - 1e-6) <= used <= max(among) * 2 * (1 + 1e-6)


def _rate(numbers: RelativeCurvature, config: RunConfig, devices: int = 3) -> float:
    return MeasuredStep(config)._rate(numbers, devices, config.local_steps)


class TestHistory:
    def test_a_rate_is_held_within_a_factor_of_two_of_the_rounds_before(self, measured: Any) -> None:
        step, words = measured()
        usual = step.used(1, Replies([numbers_of()] * 3), 1)

        low = step.used(2, Replies([numbers_of(t=1e9)] * 3), 2)
        high = step.used(3, Replies([numbers_of(t=1e-9, signal=-1.0, noise=0.0)] * 3), 3)

        assert low == pytest.approx(usual / 2)
        assert high <= 2 * usual
        assert "round 2: the measured learning rate" in words[0]
        assert "is held at" in words[0]

    def test_a_first_round_that_saw_no_signal_holds_the_next_ones_back_by_doubling_alone(self, measured: Any) -> None:
        step, _ = measured()
        blind = [numbers_of(t=1e5)] * 8  # as if hardly a step were allowed

        rates = [step.used(1, Replies(blind), 1)]
        for number in range(2, 6):
            rates.append(step._limited(number, 1e3 * rates[0], 8, 1e6))
            step._write(replace(step._rows[-1], server_round=number, learning_rate=rates[-1]))

        assert rates == pytest.approx([rates[0] * 2**power for power in range(5)])
        # five rounds are a history: their median holds
        assert step._limited(6, 1e3 * rates[0], 8, 1e6) == pytest.approx(2 * rates[2])

    def test_a_rate_that_stays_held_is_told_once(self, measured: Any) -> None:
        step, words = measured()
        usual = step.used(1, Replies([numbers_of()] * 3), 1)

        for server_round, rate in enumerate((usual / 9, usual / 8, usual * 9, usual, usual * 9), start=2):
            step._limited(server_round, rate, 3, 1.0)
        assert [word.split(":")[0] for word in words] == ["round 2", "round 4", "round 6"]

    def test_a_rate_is_held_to_what_the_lattice_has_room_for(self, measured: Any) -> None:
        step, words = measured(num_queries=4)
        step.take_up(_ledger(0, grid=-26))

        rate = step.used(1, Replies([numbers_of(t=1e-6, signal=0.0, noise=0.0)] * 3), 1)

        # three devices' four scalars of 2 each, every coefficient rate · 2 / (3 · 4): their root sum of squares
        assert math.sqrt(12) * rate * 2 / 12 * 2.0**26 == pytest.approx(2**19)
        assert "what the lattice has room for" in words[0]

    def test_the_first_round_has_no_history(self, measured: Any) -> None:
        step, words = measured()

        assert step.planned(1) == 0.0
        assert step.used(1, Replies([numbers_of(t=1e9)] * 3), 1) < 1e-6
        assert words == []

    def test_curvature_along_the_gradient_is_averaged_over_rounds(self, measured: Any) -> None:
        step, _ = measured()
        for number in range(1, 10):
            step.used(number, Replies([numbers_of(signal=8.0)] * 3), number)
        usual = step.used(10, Replies([numbers_of(signal=8.0)] * 3), 10)

        once = step.used(11, Replies([numbers_of(signal=-8.0)] * 3), 11)  # as a few directions may say

        # the mean of ten rounds and this one; within a round devices agree
        expected = _rate(numbers_of(signal=(10 * 8.0 - 8.0) / 11), step._config, 3)
        assert once == pytest.approx(expected)
        assert usual < once < 1.5 * usual

    def test_the_share_of_noise_is_averaged_over_rounds(self, measured: Any) -> None:
        step, _ = measured()
        rounds = history(3 * step._config.num_queries)
        for number in range(1, rounds):
            step.used(number, Replies([numbers_of(share=0.2)] * 3), number)

        once = step.used(rounds, Replies([numbers_of(share=0.7)] * 3), rounds)

        assert once == pytest.approx(_rate(numbers_of(share=0.2 + 0.5 / rounds), step._config, 3))

    def test_nothing_measured_keeps_the_rate_and_nobody_takes_no_step(self, measured: Any) -> None:
        step, _ = measured()
        usual = step.used(1, Replies([numbers_of()] * 2), 1)
        silent = Replies([])

        class Unmoved(Replies):
            accepted = 2  # type: ignore[assignment]

        assert step.used(2, silent, 2) == 0.0
        assert step.used(3, Unmoved([]), 3) == usual

    def test_local_steps_take_the_rate_of_a_round_of_one(self, measured: Any) -> None:
        step, _ = measured(num_queries=8, local_steps=3)
        assert step.planned(1) == 0.0
        first = step.used(1, Replies([numbers_of()] * 4), 1)
        planned = step.planned(2)

        one = best_coefficient(numbers_of(), directions=32, devices=4, left_out=8) * 32

        assert planned == pytest.approx(min(one, 2 * first))
        assert step.used(2, Replies([numbers_of(t=1e9)] * 4), 2) == planned  # what devices used, the server does
        assert step.planned(3) < planned

    def test_lines_survive_and_those_of_lost_rounds_are_dropped(self, measured: Any, tmp_path: Path) -> None:
        step, _ = measured(local_steps=2)
        for number in (1, 2, 3):
            step.used(number, Replies([numbers_of(t=200.0 + number)] * 3), number)
        rates = [json.loads(line)["learning_rate"] for line in (tmp_path / LOG_NAME).read_text().splitlines()]

        again, _ = measured(local_steps=2)
        again.take_up(_ledger(2))

        assert len(rates) == 3
        assert [row.learning_rate for row in again._rows] == rates[:2]
        assert again.used(3, Replies([numbers_of(t=203.0)] * 3), 3) == rates[2]
        assert again.planned(4) == step.planned(4)
        fresh, _ = measured()
        fresh.take_up(_ledger(0))
        assert fresh._rows == []

    @pytest.mark.parametrize(
        "line", ['{"server_round": 1}', '{"server_round": 1, "learning_rate": 0.0, "devices": 2}', "[1]", "NaN-row"]
    )
    def test_lines_that_are_no_steps_are_refused(self, measured: Any, tmp_path: Path, line: str) -> None:
        step, _ = measured()
        step.used(1, Replies([numbers_of()]), 1)
        good = json.loads((tmp_path / LOG_NAME).read_text())
        row = json.dumps(good | {"per_direction": math.nan}) if line == "NaN-row" else line
        (tmp_path / LOG_NAME).write_text(row + "\n")

        if line == "[1]":  # torn: nothing of it is used
            step.take_up(_ledger(1))
            assert step._rows == []
            return
        with pytest.raises(
            ConfigError, match=r"is not a measured step \((learning_rate|per_direction) is .*\): move the file away"
        ):
            step.take_up(_ledger(1))

    def test_a_full_disk_costs_a_word(self, measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        step, words = measured()

        def full(path: Path, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("server.rounds.step_size.write_durably", full)

        assert step.used(1, Replies([numbers_of()]), 1) > 0
        assert "steps.jsonl is not written: No space left on device" in words[0]


def _after_checks(progress: list[Progress] | None, tmp_path: Path, **changes: Any) -> float:
    """The rate after twelve rounds of three devices whose scalars are nearly all noise."""
    step = MeasuredStep(RunConfig(output=str(tmp_path), **changes), lambda: progress)
    found = [numbers_of(share=share, signal=0.0) for share in (0.93, 0.97, 1.01)]
    return [step.used(number, Replies(found), number) for number in range(1, 13)][-1]


class TestHeldOut:
    def test_rounds_that_lower_the_held_out_loss_lengthen_the_step_and_others_shorten_it(self, tmp_path: Path) -> None:
        alone = _after_checks(None, tmp_path)

        def after(change: float) -> float:
            checks = [Progress(last - 4, last, change, 1e-5, 1.0) for last in (4, 8)]
            return _after_checks(checks, tmp_path)

        assert after(-0.005) > 1.5 * alone > 1.5 * after(0.0)

    def test_the_first_rounds_explore_where_a_check_will_tell(self, tmp_path: Path) -> None:
        nothing = [numbers_of(share=1.0, signal=0.0)] * 3
        rates = [
            MeasuredStep(RunConfig(output=str(tmp_path)), lambda checks=checks: checks).used(1, Replies(nothing), 1)
            for checks in (None, [])
        ]

        assert rates[1] == pytest.approx(10 * rates[0], rel=1e-5)

    def test_a_noisy_check_tells_little(self, tmp_path: Path) -> None:
        sure, unsure = ([Progress(0, 4, -0.02, error, 1.0)] * 2 for error in (1e-4, 1.0))

        assert _after_checks(unsure, tmp_path) == pytest.approx(_after_checks(None, tmp_path), rel=0.05)
        assert _after_checks(sure, tmp_path) > 1.5 * _after_checks(unsure, tmp_path)

    def test_updates_that_are_no_mean_promise_nothing(self, tmp_path: Path) -> None:
        checks = [Progress(0, 4, 0.1, 1e-4, 1.0)] * 2

        median = {"aggregation": "median", "directions": "shared", "weighting": "uniform", "min_replies": 3}
        assert _after_checks(checks, tmp_path, **median) == _after_checks(None, tmp_path, **median)


def test_rows_name_what_was_measured(measured: Any, tmp_path: Path) -> None:
    step, _ = measured()
    step.used(1, Replies([numbers_of(), numbers_of(t=300.0)]), 1)

    row = json.loads((tmp_path / LOG_NAME).read_text())

    assert list(row) == [
        "server_round", "learning_rate", "per_direction", "along_signal", "along_noise", "noise_share", "along_error",
            "devices", "room", "share_error", "square", "mean_square", "kept",
    ]  # fmt: skip
    assert row["per_direction"] == 250.0  # the mean of two
    assert astuple(numbers_of())[1:4] == (row["along_signal"], row["along_noise"], row["noise_share"])
