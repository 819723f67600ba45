"""Continual adaptation: how far it is from the base, and every way back exact."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from client.adapt.drift_guard import DriftBounds, DriftGuard
from client.adapt.record import AdaptationRecord, undo
from client.adapt.steps import adapt
from zo_common.errors import ChecksumMismatch, ConfigError
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger.replay import apply_all

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]


@pytest.fixture
def model() -> nn.Module:
    """A module of a few thousand weights of two magnitudes, so of two grids."""
    model = nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 40))
    generator = torch.Generator().manual_seed(0)
    for scale, parameter in zip((0.05, 0.05, 1.0, 1.0), model.parameters(), strict=True):
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return model


def _record(seed: int, size: float = 1.0) -> AdaptationRecord:
    grads = size * np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    return AdaptationRecord(seed, 1e-3, grads.astype(np.float32))


def _applied(state: LatticeState, seed: int, size: float = 1.0) -> AdaptationRecord:
    record = _record(seed, size)
    apply_all(state, record.updates())
    return record


def _distance(state: LatticeState, base: dict[str, torch.Tensor]) -> float:
    """The norm of what the weights have moved ÷ that of the base, read off the weights."""
    moved = torch.cat([(t.weight - base[t.name]).double().reshape(-1) for t in state.tensors])
    return float(moved.norm() / torch.cat([w.double().reshape(-1) for w in base.values()]).norm())


def test_drift_of_one_direction_by_hand(model: nn.Module) -> None:
    state = LatticeState(model, "0.weight", threads=1)
    guard = DriftGuard(state)
    assert guard.drift() == 0.0
    rms = float(state.tensors[0].weight.double().square().mean().sqrt())
    record = AdaptationRecord(1, 2.0**-10, np.array([[3.0]], np.float32))
    apply_all(state, record.updates())

    guard.accept(record, 0.0)

    assert guard.drift() == pytest.approx(3 * 2.0**-10 / rms)


def test_drift_is_near_the_distance_of_the_weights(model: nn.Module) -> None:
    state = LatticeState(model, "all", "rms", threads=1)
    base = {t.name: t.weight.clone() for t in state.tensors}
    guard = DriftGuard(state)

    for seed in range(8):
        guard.accept(_applied(state, seed), 1.0)
        assert guard.drift() == pytest.approx(_distance(state, base), rel=0.05)


def test_too_far_is_back_to_the_base(model: nn.Module, weight_bytes: Reader) -> None:
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    probe = DriftGuard(state)
    probe.accept(_applied(state, 0), 0.0)
    step = probe.drift()
    probe.reset()
    guard = DriftGuard(state, DriftBounds(max_drift=4 * step))

    stayed = [guard.accept(_applied(state, seed), 0.0) for seed in range(6)]
    stayed.append(guard.accept(_applied(state, 6, size=100.0), 0.0))

    assert stayed == [True] * 6 + [False]
    assert guard.records == ()
    assert guard.drift() == 0.0
    assert weight_bytes(model) == before


@pytest.mark.parametrize("objective", [0.51, math.inf, math.nan])
def test_an_objective_that_runs_away_is_back_to_the_base(
    model: nn.Module, weight_bytes: Reader, objective: float
) -> None:
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    guard = DriftGuard(state, DriftBounds(max_objective=0.5))

    assert guard.accept(_applied(state, 1), 0.5)
    assert not guard.accept(_applied(state, 2), objective)

    assert weight_bytes(model) == before
    assert guard.accept(_applied(state, 3), 0.1)
    assert [r.seed for r in guard.records] == [3]


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        (DriftBounds(window=3), [1, 2, 3, 3, 3, 3]),
        (DriftBounds(window=1), [1, 1, 1, 1, 1, 1]),
        (DriftBounds(anchor=0.5), [1, 1, 1, 1, 1, 1]),
        (DriftBounds(anchor=0.25), [1, 2, 3, 3, 3, 3]),
        (DriftBounds(), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_oldest_are_undone_exactly(bounds: DriftBounds, held: list[int], model: nn.Module) -> None:
    state = LatticeState(model, "all", threads=1)
    elsewhere = LatticeState(copy.deepcopy(model), "all", threads=1)
    guard = DriftGuard(state, bounds)

    for seed, expected in enumerate(held):
        guard.accept(_applied(state, seed), 0.0)

        assert [r.seed for r in guard.records] == list(range(seed + 1))[-expected:]
        for record in guard.records:
            apply_all(elsewhere, record.updates())
        assert elsewhere.checksum() == state.checksum()
        for record in guard.records:
            undo(elsewhere, record)


def test_adaptations_pile_up_and_come_off(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    guard = DriftGuard(state, DriftBounds(window=4))
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    for utterance in range(9):
        losses: list[float] = []
        record = adapt(
            state,
            lambda step: lambda: model(inputs).square().mean(dim=1),
            utterance,
            3,
            EstimatorConfig(num_queries=2),
            1e-2,
            on_step=lambda step, loss, losses=losses: losses.append(loss),
        )
        assert guard.accept(record, losses[-1])
        assert record.end != record.start

    assert [r.seed for r in guard.records] == [5, 6, 7, 8]
    guard.reset()
    assert weight_bytes(model) == before


def test_weights_that_something_else_moved_are_noticed(model: nn.Module) -> None:
    state = LatticeState(model, "all", threads=1)
    guard = DriftGuard(state)
    guard.accept(_applied(state, 1), 0.0)
    state.apply([Update(99, 1e-3)])

    with pytest.raises(ChecksumMismatch):
        guard.reset()


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"max_drift": 0.0}, r"max-drift is 0\.0"),
        ({"max_drift": math.nan}, "max-drift is not a number"),
        ({"max_objective": math.nan}, "max-objective is not a number"),
        ({"anchor": 1.0}, r"anchor is 1\.0"),
        ({"anchor": -0.1}, r"anchor is -0\.1"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_bounds_are_checked(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DriftBounds(**bounds)
