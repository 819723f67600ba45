"""Curvature along a step's directions: unbiased, equal to a brute-force sum, and what back-propagation says."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.estimator import curvature
from zo_common.estimator.curvature import (
    MOST_OF_ONE,
    Curvature,
    OutputTrace,
    curvature_of,
    fisher_gram,
    mean_curvature,
)
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import clip_factors, zo_step
from zo_common.lattice.state import LatticeState

WEIGHTS, OUTPUTS, BATCH = 300, 40, 8
KINDS = ("leave-one-out", "two-sided", "one-sided")


class _Quadratic:
    """A linear model of known Jacobian J and gradients g_b: what a step sees of it, without a network around."""

    def __init__(self, noise: float) -> None:
        rng = np.random.default_rng(3)
        self.jacobian = rng.standard_normal((OUTPUTS, WEIGHTS)) / math.sqrt(WEIGHTS)
        self.gradient = rng.standard_normal(WEIGHTS) / math.sqrt(WEIGHTS) + 2 * self.jacobian[0]
        self.fisher = self.jacobian.T @ self.jacobian
        self.noise = noise
        self.rng = rng

    def directions(self, q: int, signs: bool) -> np.ndarray:
        """Normal, or ±1 as in a step."""
        return self.rng.choice([-1.0, 1.0], (q, WEIGHTS)) if signs else self.rng.standard_normal((q, WEIGHTS))

    def step(self, kind: str, q: int, signs: bool) -> Curvature:
        """One step on a new batch of utterances."""
        directions = self.directions(q, signs)
        spread = self.noise * self.rng.standard_normal((BATCH, WEIGHTS))
        slopes = directions @ (self.gradient + spread).T
        differences = directions @ self.jacobian.T
        if kind == "leave-one-out":
            slopes = (slopes - slopes.mean(axis=0)) * q / (q - 1)
            differences = differences - differences.mean(axis=0)
        return curvature_of(differences @ differences.T, slopes, kind, epsilon=0.0)


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [4, 8, 16])
def test_the_means_of_many_steps_are_the_true_curvature(kind: str, q: int, signs: bool) -> None:
    toy = _Quadratic(noise=0.1)
    steps = np.array([astuple(toy.step(kind, q, signs)) for _ in range(4000)])
    means, errors = steps.mean(axis=0), steps.std(axis=0) / math.sqrt(len(steps))

    left_out = q / (q - 1) if kind == "leave-one-out" else 1.0
    truth = np.array(
        [
            np.trace(toy.fisher),
            toy.gradient @ toy.fisher @ toy.gradient,
            toy.noise**2 / BATCH * np.trace(toy.fisher),
            toy.noise**2 / BATCH * WEIGHTS * left_out,
        ]
    )
    # leave-one-out's form is for normal directions
    off = np.square(toy.gradient) @ toy.fisher.diagonal() / (q - 1) if signs and left_out > 1 else 0.0

    assert np.all(np.abs(means - truth) < 4 * errors + np.array([0, off, 0, 0]))
    assert errors[1] < 0.1 * truth[1]


def test_the_formula_of_pairs_alone_would_be_far_off_for_few_directions() -> None:
    """Why leave-one-out has a formula of its own: its pairs i ≠ j share a mean."""
    toy, q = _Quadratic(noise=0.0), 4
    pairs = []
    for _ in range(2000):
        directions = toy.directions(q, signs=False)
        centred = directions - directions.mean(axis=0)
        slopes = q / (q - 1) * centred @ toy.gradient
        gram = q / (q - 1) * centred @ toy.fisher @ centred.T
        pairs.append((slopes @ gram @ slopes - np.square(slopes) @ gram.diagonal()) / (q * (q - 1)))
    signal, size = toy.gradient @ toy.fisher @ toy.gradient, toy.gradient @ toy.gradient

    expected = q / (q - 1) ** 3 * ((q * q - 2 * q + 2) * signal + size * np.trace(toy.fisher))

    assert np.mean(pairs) == pytest.approx(expected, rel=0.03)
    assert np.mean(pairs) > 1.8 * signal


@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_gram_matrix_is_the_sum_over_positions_and_classes(
    kind: str, q: int, positions: int, classes: int, seed: int
) -> None:
    q = max(q, 2) if kind == "leave-one-out" else q
    rng, epsilon = np.random.default_rng(seed), 0.25
    passes = {"leave-one-out": q, "one-sided": q + 1, "two-sided": 2 * q}[kind]
    logits = rng.standard_normal((passes, positions, classes + 3))
    all_probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    log_probs = np.log(all_probs)[:, :, :classes].astype(np.float32)  # three classes are not kept
    weights = rng.random(positions)

    found = fisher_gram(log_probs, weights, kind, epsilon)

    for i in range(q):
        for j in range(q):
            total = 0.0
            for at in range(positions):
                probs = [float(np.mean(np.exp(log_probs[:, at, v].astype(float)))) for v in range(classes)]
                sides = [[_difference(log_probs[:, at, v].astype(float), d, kind) / epsilon for v in range(classes)]
                         for d in (i, j)]  # fmt: skip
                means = [sum(p * x for p, x in zip(probs, side, strict=True)) / sum(probs) for side in sides]
                total += weights[at] * sum(
                    p * (x - means[0]) * (y - means[1]) for p, x, y in zip(probs, *sides, strict=True)
                )
            assert found[i, j] == pytest.approx(total, rel=1e-9, abs=1e-9)


def _difference(values: np.ndarray, direction: int, kind: str) -> float:
    if kind == "leave-one-out":
        return float(values[direction] - sum(values) / len(values))
    if kind == "one-sided":
        return float(values[direction + 1] - values[0])
    return float(values[2 * direction] - values[2 * direction + 1]) / 2


class _Softmax(nn.Module):
    """A linear softmax classifier of B utterances of 3 tokens, whose loss tells its trace."""

    def __init__(self, utterances: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(0.3 * torch.randn(12, 20, generator=generator), requires_grad=False)
        self.inputs = torch.randn(utterances, 3, 20, generator=generator)
        self.labels = torch.randint(0, 12, (utterances, 3), generator=generator)
        self.trace: OutputTrace | None = None

    def losses(self, weight: torch.Tensor) -> torch.Tensor:
        return -(self.inputs @ weight.T).log_softmax(-1).gather(2, self.labels[..., None])[..., 0].mean(dim=1)

    def __call__(self) -> torch.Tensor:
        if self.trace is not None:
            logits = (self.inputs @ self.weight.T).reshape(-1, 12)
            rows = torch.arange(len(self.inputs)).repeat_interleave(3)
            weights = torch.full((len(logits),), 1 / (3 * len(self.inputs)))
            self.trace.record(logits, logits.logsumexp(dim=1), rows, weights)
        return self.losses(self.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_softmax_models_curvature_is_what_back_propagation_says(kind: str) -> None:
    model, q = _Softmax(), 16
    weight = model.weight.double()
    model.inputs = model.inputs.double()
    hessian = torch.autograd.functional.hessian(lambda w: model.losses(w).mean(), weight).reshape(240, 240)
    gradient = torch.autograd.functional.jacobian(lambda w: model.losses(w).mean(), weight).reshape(240)
    model.inputs = model.inputs.float()
    # of a linear softmax classifier the Hessian is the Fisher matrix
    truth = float(hessian.trace()), float(gradient @ hessian @ gradient)

    state = LatticeState(model, "all", "unit", threads=1)
    config = EstimatorConfig(kind, q, 1e-3)  # type: ignore[arg-type]
    steps = [zo_step(state, model, seed, 0, config, 0.0, curvature=True).curvature for seed in range(300)]

    found = np.array([[c.per_direction, c.along_signal + c.along_noise] for c in steps if c is not None])
    assert len(found) == 300
    assert found[:, 0].mean() == pytest.approx(truth[0], rel=0.02)
    assert found[:, 1].mean() == pytest.approx(truth[1], rel=0.12)
    assert model.trace is None


def test_the_curvature_is_asked_only_of_losses_that_tell_it() -> None:
    model = _Softmax()
    state = LatticeState(model, "all", "unit", threads=1)
    before = state.checksum()

    with pytest.raises(ConfigError, match="set learning-rate to a number"):
        zo_step(state, lambda: torch.zeros(3), 1, 0, EstimatorConfig("two-sided", 2), 0.1, curvature=True)

    assert state.checksum() == before


def test_a_failed_step_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Softmax()
    model.inputs[2, 1, 4] = math.nan
    state = LatticeState(model, "all", "unit", threads=1)

    with pytest.raises(NonFiniteLoss):
        zo_step(state, model, 1, 0, EstimatorConfig("two-sided", 2), 0.1, curvature=True)

    assert model.trace is None


def test_a_trace_keeps_a_bounded_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "MOST_VALUES", 4 * 5 * 3)
    monkeypatch.setattr(curvature, "MOST_CLASSES", 3)
    monkeypatch.setattr(curvature, "MOST_PASSES", 4)
    trace = OutputTrace(passes=9)
    logits = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))

    for number in range(9):
        rows = torch.arange(11) // 2
        trace.record(logits + number, (logits + number).logsumexp(1), rows, torch.full((11,), 1 / 11))

    assert trace.log_probs.shape == (4, 5, 3)
    assert trace.log_probs.dtype == np.float32
    assert trace.rows.tolist() == [0, 1, 2, 3, 4]  # positions 0, 2, 4, 6, 8 of the eleven
    assert trace.weights.sum() == pytest.approx(1.0)
    likeliest = logits.log_softmax(1)[torch.tensor([0, 2, 4, 6, 8])].topk(3).values
    assert np.abs(trace.log_probs[0] - likeliest.numpy()).max() < 1e-6


def test_positions_left_out_stand_for_those_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.standard_normal((4, 4000, 6)))
    grams = []
    for most in (1 << 22, 4 * 500 * 6):
        monkeypatch.setattr(curvature, "MOST_VALUES", most)
        trace = OutputTrace(passes=4)
        for each in logits:
            trace.record(each, each.logsumexp(1), torch.zeros(4000, dtype=torch.int64), torch.full((4000,), 1 / 4000))
        grams.append(fisher_gram(trace.log_probs, trace.weights, "leave-one-out", 1.0))

    assert grams[1].diagonal() == pytest.approx(grams[0].diagonal(), rel=0.1)


class TestTooLittle:
    """What one step cannot tell is guessed on the side of a short step."""

    def test_two_directions_of_leave_one_out_bound_the_curvature_from_above(self) -> None:
        toy = _Quadratic(noise=0.1)
        found = np.array([sum(astuple(toy.step("leave-one-out", 2, True))[1:3]) for _ in range(2000)])

        signal = toy.gradient @ toy.fisher @ toy.gradient
        assert found.mean() > signal
        assert (found >= 0).all()

    @pytest.mark.parametrize("kind", ["two-sided", "one-sided"])
    def test_a_single_direction_does_as_well(self, kind: str) -> None:
        found = curvature_of(np.array([[7.0]]), np.array([[2.0, 4.0]]), kind, epsilon=0.0)

        assert found.along_signal + found.along_noise == pytest.approx(3.0**2 * 7.0)
        assert found.per_direction == 7.0

    def test_of_one_utterance_half_is_noise(self) -> None:
        gram, slopes = np.eye(4), np.array([[1.0], [2.0], [-1.0], [-2.0]])

        found = curvature_of(gram, slopes, "two-sided", epsilon=0.0)

        assert found.noise == pytest.approx(2.5 / 2)
        assert found.along_noise == pytest.approx(found.along_signal)

    def test_a_batch_that_says_nothing_measures_nothing(self) -> None:
        found = curvature_of(np.zeros((4, 4)), np.zeros((4, 3)), "leave-one-out", epsilon=0.1)

        assert astuple(found) == (0.0, 0.0, 0.0, 0.0)
        assert found.relative(0.0) is None

    def test_what_is_not_finite_is_refused(self) -> None:
        with pytest.raises(NonFiniteLoss, match="curvature is not finite"):
            curvature_of(np.ones((3, 3)), np.full((3, 2), 1e300), "two-sided", epsilon=0.1)


def test_curved_loss_between_the_passes_counts_as_noise() -> None:
    """With a large ε, half of ε·zᵀFz is in every scalar: it differs between directions, and is no gradient."""
    rng, q, epsilon = np.random.default_rng(0), 8, 0.5
    squares, noises = [], []
    for _ in range(3000):
        directions = rng.standard_normal((q, 20))
        losses = np.square(directions).sum(axis=1) * epsilon**2 / 2  # L = |w|²/2 at its minimum: all of it is curvature
        slopes = (losses - (losses.sum() - losses) / (q - 1)) / epsilon
        centred = directions - directions.mean(axis=0)
        found = curvature_of(centred @ centred.T, np.repeat(slopes[:, None], 2, axis=1), "leave-one-out", epsilon)
        squares.append(np.square(slopes).mean())
        noises.append(found.noise)

    assert np.mean(noises) == pytest.approx(np.mean(squares), rel=0.05)


def test_relative_numbers_do_not_depend_on_the_gradients_size() -> None:
    one = Curvature(10.0, 4.0, 1.0, 0.5).relative(2.0)
    hundred = Curvature(10.0, 4e4, 1e4, 5e3).relative(2e4)

    assert one is not None
    assert hundred is not None
    assert astuple(one)[:4] == pytest.approx(astuple(hundred)[:4])
    assert astuple(one) == (10.0, 2.0, 0.5, 0.25, 2.0)
    drowned = Curvature(10.0, 4.0, 1.0, 99.0).relative(2.0)
    assert drowned is not None
    assert drowned.noise_share == MOST_OF_ONE


def test_local_steps_report_the_mean() -> None:
    assert mean_curvature([Curvature(1, -2, 3, 4), Curvature(3, 6, 5, 0)]) == Curvature(2, 2, 4, 2)


class TestClipping:
    def test_no_utterance_is_longer_than_the_multiple_of_the_median(self) -> None:
        per_example = np.array([[3.0, 0.3, 30.0, 3.0], [4.0, 0.4, 40.0, 4.0]])  # norms 5, 0.5, 50, 5

        assert clip_factors(per_example, 3.0) == pytest.approx([1, 1, 0.3, 1])
        assert clip_factors(per_example, 0.0).tolist() == [1, 1, 1, 1]
        assert clip_factors(np.zeros((2, 3)), 3.0).tolist() == [1, 1, 1]
        assert clip_factors(np.zeros((2, 0)), 3.0).tolist() == []

    @given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(1, 10))
    def test_directions_are_kept(self, size: int, seed: int, multiple: float) -> None:
        per_example = np.random.default_rng(seed).standard_cauchy((3, size))

        factors = clip_factors(per_example, multiple)

        norms = np.linalg.norm(per_example, axis=0)
        assert ((factors > 0) & (factors <= 1)).all()
        assert (norms * factors <= multiple * np.median(norms) * (1 + 1e-12)).all()
        assert (factors[norms <= multiple * np.median(norms)] == 1).all()

    def test_one_utterance_does_not_decide_a_step_and_counts_less_in_the_curvature(self) -> None:
        model = _Softmax(utterances=7)
        model.inputs[0] *= 50.0  # a gradient far beyond the others'
        model.weight *= 0.1
        state = LatticeState(model, "all", "unit", threads=1)
        config = EstimatorConfig("leave-one-out", 8, 1e-3)

        plain = zo_step(state, model, 3, 0, config, 0.0, curvature=True)
        clipped = zo_step(state, model, 3, 0, config, 0.0, weigh=lambda g: clip_factors(g, 3.0), curvature=True)

        first, others = plain.per_example[:, 0], plain.per_example[:, 1:].sum(axis=1)
        assert _cosine(plain.projected_grads, first) > 0.95
        assert _cosine(clipped.projected_grads, others) > _cosine(plain.projected_grads, others) + 0.5
        lengths = np.linalg.norm(clipped.per_example, axis=0)
        assert lengths[0] == pytest.approx(3 * np.median(np.linalg.norm(plain.per_example, axis=0)))
        assert np.array_equal(plain.per_example[:, 1:], clipped.per_example[:, 1:])
        assert plain.curvature is not None
        assert clipped.curvature is not None
        assert clipped.curvature.per_direction < plain.curvature.per_direction / 5


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
