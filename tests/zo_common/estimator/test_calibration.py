"""Calibration of groups: what is measured, by whom, and what is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.estimator.calibration import (
    GroupMeasure,
    agreed_measure,
    by_importance,
    measure_group,
    only,
    passes_of_groups,
    pooled_measures,
    shared_out,
)
from zo_common.estimator.curvature import OutputTrace
from zo_common.estimator.tensor_choice import (
    RoundShape,
    choose_tensors,
    pattern_of,
    progress,
    shrunk,
    travel,
    wider_ranges,
)
from zo_common.lattice.trained import DEFAULT

SHAPE = RoundShape(64, 8)


class Softmax(nn.Module):
    """Softmax regression of 5 classes on 6 numbers, with a bias that matters less."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(0.3 * torch.randn(5, 6, generator=generator), requires_grad=False)
        self.offset = nn.Parameter(torch.full((5,), 0.0123456789), requires_grad=False)


class SoftmaxLoss:
    """Cross-entropy of fixed utterances of one position each, as a `TracedLoss`."""

    def __init__(self, model: Softmax, utterances: int = 64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model = model
        self.x = torch.randn(utterances, 6, generator=generator)
        self.y = torch.randint(0, 5, (utterances,), generator=generator)
        self.trace: OutputTrace | None = None

    def logits(self) -> torch.Tensor:
        return self.x @ self.model.matrix.T + self.model.offset

    def __call__(self) -> torch.Tensor:
        logits = self.logits()
        normaliser = logits.logsumexp(dim=1)
        if self.trace is not None:
            count = len(self.y)
            self.trace.record(logits, normaliser, torch.arange(count), torch.full((count,), 1 / count))
        return normaliser - logits.gather(1, self.y[:, None])[:, 0]

    def square_and_trace(self) -> tuple[float, float]:
        """|g|² and tr F of the matrix, by back-propagation and in closed form."""
        weight = self.model.matrix.detach().clone().requires_grad_()
        logits = self.x @ weight.T + self.model.offset
        torch.nn.functional.cross_entropy(logits, self.y).backward()
        probs = logits.detach().softmax(dim=1)
        spread = (probs - probs.square()).sum(dim=1) * self.x.square().sum(dim=1)
        assert weight.grad is not None
        return float(weight.grad.square().sum()), float(spread.mean())


def measure(signal: float = 1.0, noise: float = 0.5, curvature: float = 1.0, **others: Any) -> GroupMeasure:
    usual = GroupMeasure(2000, 60, signal + noise, noise, curvature, along_signal=0.01, along_noise=0.0)
    return replace(usual, **others)


class TestMeasuring:
    def test_the_signal_and_the_curvature_of_a_group(self) -> None:
        model = Softmax()
        loss = SoftmaxLoss(model)
        found = pooled_measures([measure_group(model, ["matrix"], lambda: loss, seed, 24) for seed in range(40)])
        square, trace = loss.square_and_trace()
        assert found.weights == 30
        assert found.curvature == pytest.approx(trace, rel=0.1)
        assert found.square == pytest.approx(square, rel=0.15)

    def test_weights_are_as_before_to_the_bit_also_between_grid_points(self) -> None:
        model = Softmax()
        before = {name: p.clone() for name, p in model.named_parameters()}
        with only(model, ["offset"]) as state:
            assert not torch.equal(model.offset, before["offset"])  # snapped
            assert set(state.exponents) == {"offset"}
        measure_group(model, ["offset", "matrix"], lambda: SoftmaxLoss(model), 3, 8)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])

    def test_weights_are_as_before_after_an_error(self) -> None:
        model, calls = Softmax(), []
        before = model.offset.clone()
        loss = SoftmaxLoss(model)

        class Failing(SoftmaxLoss):
            def __call__(self) -> torch.Tensor:
                calls.append(1)
                return loss() * (math.nan if len(calls) > 2 else 1)

        with pytest.raises(NonFiniteLoss):
            measure_group(model, ["offset"], lambda: Failing(model), 0, 8)
        assert torch.equal(model.offset, before)

    @pytest.mark.parametrize("passes", [3, 4, 5, 8, 17])
    def test_no_more_passes_than_allowed(self, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        model, calls = Softmax(), []
        loss = SoftmaxLoss(model)
        inner: Callable[[], torch.Tensor] = loss.logits

        def counted() -> torch.Tensor:
            calls.append(1)
            return inner()

        monkeypatch.setattr(loss, "logits", counted)
        measure_group(model, ["matrix"], lambda: loss, 0, passes)
        assert len(calls) <= passes

    def test_too_few_passes_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="at least 3"):
            measure_group(Softmax(), ["matrix"], lambda: SoftmaxLoss(Softmax()), 0, 2)

    def test_numbers_that_cannot_be_are_refused(self) -> None:
        for bad in ({"curvature": math.nan}, {"square": -1.0}, {"along_signal": math.inf}):
            with pytest.raises(NonFiniteLoss):
                replace(measure(), **bad)


class TestSeveralDevices:
    def test_one_of_three_does_not_decide(self) -> None:
        liar = measure(1e6, 0.0, 1e-9)
        found = agreed_measure([measure(1.0), measure(1.2), liar])
        assert found.square == pytest.approx(1.7)
        assert found.curvature == 1.0
        assert found.directions == 3  # a device is one degree of freedom

    def test_two_are_averaged_by_directions(self) -> None:
        found = agreed_measure([measure(1.0, directions=3), measure(2.0, directions=9)])
        assert found.directions == 12
        assert found.signal == pytest.approx(1.75)

    def test_none_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="at least one"):
            agreed_measure([])

    @pytest.mark.parametrize(("devices", "each"), [(1, 2), (2, 2), (8, 2), (40, 1), (100, 4)])
    def test_groups_are_shared_out_evenly(self, devices: int, each: int) -> None:
        groups = [f"g{n}" for n in range(17)]
        shares = shared_out(groups, devices, each)
        counts = {group: sum(group in share for share in shares) for group in groups}
        measured = [count for count in counts.values() if count]
        assert len(shares) == devices
        assert all(len(set(share)) == len(share) <= each for share in shares)
        assert max(measured) - min(measured) <= 1
        assert min(measured) >= min(3, devices)
        assert counts["g0"]

    @pytest.mark.parametrize(
        ("passes", "expected"), [(3, (3, 1)), (8, (4, 2)), (9, (4, 2)), (2, (2, 1)), (64, (4, 16))]
    )
    def test_passes_of_groups(self, passes: int, expected: tuple[int, int]) -> None:
        assert passes_of_groups(passes) == expected

    def test_few_weights_and_the_encoder_come_first(self) -> None:
        names = ["decoder-first/residual-bias", "encoder-last/attention", "encoder-first/norm", DEFAULT]
        assert by_importance(names) == [DEFAULT, "encoder-first/norm", names[0], names[1]]


class TestChoosing:
    def test_noise_alone_leaves_the_default(self) -> None:
        found = choose_tensors({DEFAULT: measure(0.0), "encoder-first/norm": measure(0.01, 1.0)}, SHAPE)
        assert found.pattern.startswith(DEFAULT)
        assert found.progress == 0

    def test_nothing_measured_leaves_the_default(self) -> None:
        assert choose_tensors({}, SHAPE).pattern == DEFAULT

    def test_the_default_stays_where_another_is_hardly_better(self) -> None:
        found = choose_tensors({DEFAULT: measure(1.0), "encoder-first/norm": measure(1.1)}, SHAPE)
        assert found.pattern.startswith(DEFAULT) or "residual-bias" in found.pattern

    def test_a_group_of_much_more_signal_is_chosen(self) -> None:
        found = choose_tensors({DEFAULT: measure(0.05), "encoder-last/bias": measure(3.0)}, SHAPE)
        assert "encoder-last/bias" in found.pattern

    def test_a_tiny_group_is_not_chosen_alone(self) -> None:
        measures = {"rest/norm": measure(3.0, weights=100), "encoder-last/bias": measure(0.8)}
        assert "encoder-last/bias" in choose_tensors(measures, SHAPE).pattern

    def test_a_group_of_large_curvature_is_scaled_down(self) -> None:
        measures = {
            "encoder-last/bias": measure(2.0, 0.0, 1.0, along_signal=1.0, directions=10**6),
            "encoder-first/bias": measure(10.0, 0.0, 16.0, along_signal=26.0, directions=10**6),
        }
        pattern = choose_tensors(measures, RoundShape(1 << 16, 8)).pattern
        assert "encoder-first/bias@-2" in pattern
        assert "encoder-last/bias" in pattern

    def test_shrinking_keeps_the_squares_and_moves_towards_the_others(self) -> None:
        found = shrunk({"a": measure(1.0), "b": measure(9.0, 0.5, 1.0, directions=4), "c": measure(0.01)})
        assert set(found) == {"a", "b"}
        assert found["b"].signal < 9.0
        assert found["b"].square == pytest.approx(9.5)

    def test_progress_is_that_of_the_best_step(self) -> None:
        m = measure(1.0, 0.5, 2.0, along_signal=0.3)
        steps = np.linspace(0, 1, 20001)
        q = SHAPE.directions
        gains = steps * q * m.signal - steps**2 * q / 2 * (m.square * m.curvature + (q + 1) * m.along_signal)
        assert progress({"a": m}, {"a": 0}, SHAPE) == pytest.approx(gains.max(), rel=1e-4)

    def test_a_common_scale_changes_nothing(self) -> None:
        known = {"a": measure(1.0), "b": measure(2.0)}
        assert progress(known, {"a": 3, "b": 3}, SHAPE) == pytest.approx(progress(known, {"a": 0, "b": 0}, SHAPE))

    def test_patterns(self) -> None:
        pattern = pattern_of({"encoder-last/bias": -1, "encoder-first/norm": 0})
        assert pattern == "encoder-first/norm,encoder-last/bias@-1"
        wider = {"encoder-first/norm": 2, "encoder-last/bias": 1}
        assert pattern_of({"encoder-last/bias": -1, "encoder-first/norm": 0}, wider) == (
            "encoder-first/norm@0^2,encoder-last/bias@-1^1"
        )

    def test_ranges_are_widened_for_weights_that_go_far(self) -> None:
        near, far = measure(1.0, 0.5, 1e4, along_signal=10.0), measure(0.05, 0.05, 4.0, along_signal=0.03)
        assert wider_ranges({"a": near}, {"a": 0}, SHAPE) == {"a": 0}
        gone = travel({"a": far}, {"a": 0}, SHAPE)["a"]
        exponent = wider_ranges({"a": far}, {"a": 0}, SHAPE)["a"]
        assert exponent > 0
        assert 0.125 + gone <= 0.25 * 2**exponent
        assert choose_tensors({DEFAULT: far}, SHAPE).pattern == f"{DEFAULT}@0^{exponent}"
