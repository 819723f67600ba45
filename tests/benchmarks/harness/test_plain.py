"""The published way that ours is measured against is a correct ZO-SGD step, not a straw man."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.harness.plain import perturb, plain_step, projected_grad
from zo_common.directions.philox import direction
from zo_common.directions.seeds import direction_seed
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState

SHAPES = [(5, 3), (7,)]
both = pytest.mark.parametrize("in_place", [False, True], ids=["published", "in-place"])


def _weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator), requires_grad=False) for shape in SHAPES]


def _directions(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.cat([torch.randn(shape).flatten() for shape in SHAPES])


def _flat(weights: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in weights])


@both
def test_perturbing_adds_the_seeded_normal_direction(in_place: bool) -> None:
    weights = _weights()
    before = _flat(weights)
    perturb(weights, 5, 0.25, in_place)
    torch.testing.assert_close(_flat(weights) - before, 0.25 * _directions(5))


def test_as_published_it_replaces_the_storage_of_weights() -> None:
    weights = _weights()
    places = [weight.data_ptr() for weight in weights]
    perturb(weights, 5, 0.25, in_place=True)
    assert [weight.data_ptr() for weight in weights] == places
    perturb(weights, 5, 0.25)
    assert all(weight.data_ptr() != place for weight, place in zip(weights, places, strict=True))


@both
def test_projected_grad_of_a_linear_loss_is_the_slope_along_the_direction(in_place: bool) -> None:
    slope = torch.linspace(-1, 1, 22)
    weights = _weights()
    found = projected_grad(weights, lambda: (slope @ _flat(weights)).repeat(3), 9, 1e-2, in_place)
    assert found == pytest.approx(float(slope @ _directions(9)), rel=1e-3)


@both
def test_a_step_moves_by_the_mean_of_gradients_times_directions(in_place: bool) -> None:
    weights = _weights()
    before = _flat(weights)
    grads = plain_step(weights, lambda: _flat(weights).square().sum(), [1, 2, 3], 1e-3, 0.3, in_place)
    expected = -0.3 * sum(g * _directions(seed) for g, seed in zip(grads, [1, 2, 3], strict=True)) / 3
    torch.testing.assert_close(_flat(weights) - before, expected, rtol=1e-3, atol=1e-4)


@both
def test_steps_lower_a_quadratic(in_place: bool) -> None:
    weights = _weights()
    losses = []
    for step in range(30):
        losses.append(float(_flat(weights).square().sum()))
        seeds = [100 * step + query for query in range(4)]
        plain_step(weights, lambda: _flat(weights).square().sum(), seeds, 1e-3, 0.04, in_place)
    assert losses[-1] < 0.1 * losses[0]


def test_its_projected_gradient_is_ours_along_our_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two differ in where z comes from; along the same z they measure the same number and take the same step."""
    epsilon, rate, queries = 2.0**-9, 0.05, 3
    names = ["0.weight", "0.bias"]
    model, other = (nn.Sequential(nn.Linear(6, 4)) for _ in range(2))
    state = LatticeState(model, "all", threads=1)
    other.load_state_dict(model.state_dict())
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))

    def loss(net: nn.Module) -> torch.Tensor:
        return net(inputs).tanh().square().mean(dim=1)

    seeds = [direction_seed(3, 0, query) for query in range(queries)]
    asked = iter(())

    def ours_for_randn(shape: torch.Size, **_: object) -> torch.Tensor:
        seed, name = next(asked)
        return torch.from_numpy(direction(seed, name, shape.numel())).float().reshape(shape)

    def start(seed: int) -> None:
        nonlocal asked
        asked = iter([(seed, name) for name in names])

    monkeypatch.setattr("benchmarks.harness.plain.torch.manual_seed", start)
    monkeypatch.setattr("benchmarks.harness.plain.torch.randn", ours_for_randn)
    weights = [other.get_parameter(name).requires_grad_(False) for name in names]
    grads = plain_step(weights, lambda: loss(other), seeds, epsilon, rate)
    monkeypatch.undo()
    result = zo_step(state, lambda: loss(model), 3, 0, EstimatorConfig("two-sided", queries, epsilon), rate)

    assert grads == pytest.approx(result.projected_grads.tolist(), abs=1e-4)
    for name in names:
        torch.testing.assert_close(other.get_parameter(name), model.get_parameter(name), rtol=0, atol=1e-5)
