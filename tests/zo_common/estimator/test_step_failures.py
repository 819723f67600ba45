"""Whatever fails in a step, the weights are exactly what they were before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from zo_common.errors import EpsilonTooSmall, LatticeOverflow, NonFiniteLoss
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
KINDS = ["two-sided", "one-sided", "leave-one-out"]


def _loss_fn(model: nn.Module) -> Callable[[], torch.Tensor]:
    """Squared error of five examples."""
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    return lambda: (model(inputs) - inputs[:, :2]).double().square().mean(dim=1)


class _Interrupted(BaseException):
    """Stands for KeyboardInterrupt."""


def _fails_at(loss_fn: Callable[[], torch.Tensor], call: int, failure: BaseException | float) -> Callable[[], Any]:
    count = 0

    def wrapped() -> torch.Tensor:
        nonlocal count
        count += 1
        losses = loss_fn().clone()
        if count == call:
            if isinstance(failure, BaseException):
                raise failure
            losses[2] = failure
        return losses

    return wrapped


@pytest.mark.parametrize("estimator", KINDS)
@pytest.mark.parametrize("failure", [float("nan"), float("-inf"), ValueError("broken audio"), _Interrupted("stop")])
def test_any_failure_of_a_loss_restores_the_weights_exactly(
    small_model: Models, weight_bytes: Reader, estimator: Any, failure: BaseException | float
) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    config = EstimatorConfig(estimator, 3, 1e-3)
    expected = NonFiniteLoss if isinstance(failure, float) else type(failure)

    for call in range(1, config.forwards + 1):
        with pytest.raises(expected):
            zo_step(state, _fails_at(_loss_fn(model), call, failure), 9, 0, config, 1e-2)

        assert weight_bytes(model) == before


def test_the_error_of_a_non_finite_loss_counts_the_examples(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)

    with pytest.raises(NonFiniteLoss, match="not finite for 1 of 5 examples"):
        zo_step(state, _fails_at(_loss_fn(state.model), 2, float("nan")), 9, 0, EstimatorConfig(), 1e-2)


def test_a_gradient_beyond_float32_never_leaves(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)

    with pytest.raises(NonFiniteLoss, match="float32"):
        zo_step(state, lambda: 1e300 * _loss_fn(model)(), 9, 0, EstimatorConfig(), 1e-2)

    assert weight_bytes(model) == before


def test_a_learning_rate_beyond_the_lattice_restores_the_weights(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)

    with pytest.raises(LatticeOverflow, match="learning rate"):
        zo_step(state, _loss_fn(model), 9, 0, EstimatorConfig(), 1e6)

    assert weight_bytes(model) == before


def test_an_epsilon_of_zero_units_touches_nothing(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)

    with pytest.raises(EpsilonTooSmall):
        zo_step(state, _loss_fn(model), 9, 0, EstimatorConfig(epsilon=1e-12), 1e-2)

    assert weight_bytes(model) == before
    assert state.passes == 0
