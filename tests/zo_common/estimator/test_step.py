"""The estimator measures directional derivatives, in the promised number of passes, and always comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from zo_common.directions.philox import direction
from zo_common.directions.seeds import direction_seed
from zo_common.errors import ConfigError
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import StepResult, Walker, measure, step_updates, zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
KINDS = ["two-sided", "one-sided", "leave-one-out"]
EXAMPLES = 5


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(EXAMPLES, 3, generator=generator), torch.randn(EXAMPLES, 2, generator=generator)


def _losses(model: nn.Module, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Per-example squared error, computed in the dtype of `weights`."""
    inputs, targets = (x.to(next(iter(weights.values())).dtype) for x in _batch())
    return (functional_call(model, weights, (inputs,)) - targets).square().mean(dim=1)


def _loss_fn(model: nn.Module, dtype: torch.dtype = torch.float64) -> Callable[[], torch.Tensor]:
    return lambda: _losses(model, {n: p.detach().to(dtype) for n, p in model.named_parameters()})


def _tangent(state: LatticeState, seed: int) -> dict[str, torch.Tensor]:
    """2**s_T · z_T as float64 tensors."""
    return {
        t.name: 2.0**t.scale_exponent
        * torch.from_numpy(direction(seed, t.name, t.weight.numel())).double().reshape(t.weight.shape)
        for t in state.tensors
    }


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().double() for name, p in sorted(model.named_parameters())}


def _derivative(state: LatticeState, seed: int) -> float:
    """The exact derivative of the mean loss along the direction of `seed`, in float64."""
    model = state.model
    _, slope = jvp(lambda w: _losses(model, w).mean(), (_weights(model),), (_tangent(state, seed),))
    return float(slope)


def _measure(state: LatticeState, loss_fn: Callable[[], torch.Tensor], seeds: list[int], **config: Any) -> StepResult:
    settings = EstimatorConfig(num_queries=len(seeds), **config)
    walker = Walker(state, settings.epsilon)
    result = measure(walker, loss_fn, seeds, settings)
    walker.move(None)
    return result


@pytest.mark.parametrize("scale", ["unit", "rms"])
def test_two_sided_error_against_the_directional_derivative_falls_with_epsilon_squared(
    small_model: Models, scale: Any
) -> None:
    model = small_model()
    state = LatticeState(model, "all", scale, threads=1)
    exact = _derivative(state, 7)

    epsilons = [2.0**-e for e in range(4, 11)]
    errors = [abs(float(_measure(state, _loss_fn(model), [7], epsilon=e).per_example.mean()) - exact) for e in epsilons]

    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.all(np.abs(ratios[2:] - 4.0) < 0.4), ratios
    assert errors[-1] < 1e-4 * abs(exact)


def test_one_sided_error_falls_with_epsilon(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    exact = _derivative(state, 7)

    errors = [
        abs(
            float(_measure(state, _loss_fn(model), [7], epsilon=2.0**-e, estimator="one-sided").per_example.mean())
            - exact
        )
        for e in range(8, 13)
    ]

    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.all(np.abs(ratios - 2.0) < 0.2), ratios


def test_float32_losses_bring_the_error_down_to_their_rounding(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    exact = _derivative(state, 7)
    loss_fn = _loss_fn(model, torch.float32)
    loss = float(loss_fn().mean())

    for epsilon in (2.0**-9, 2.0**-11, 2.0**-13):
        found = float(_measure(state, loss_fn, [7], epsilon=epsilon).projected_grads[0])
        # the loss is a mean of a few terms: some units in its last place, divided by 2ε
        assert abs(found - exact) < epsilon**2 * 1e3 + 8 * 2.0**-24 * loss / epsilon


@pytest.mark.parametrize("estimator", KINDS)
def test_the_mean_over_directions_points_along_the_gradient(small_model: Models, estimator: Any) -> None:
    model = small_model(hidden=3)
    state = LatticeState(model, "all", threads=1)
    weights = {name: w.requires_grad_() for name, w in _weights(model).items()}
    gradient = torch.autograd.grad(_losses(model, weights).mean(), list(weights.values()))
    expected = dict(zip(weights, gradient, strict=True))
    seeds = [direction_seed(3, 0, j) for j in range(600)]

    result = _measure(state, _loss_fn(model), seeds, epsilon=2.0**-10, estimator=estimator)

    pairs = zip(result.projected_grads.tolist(), (_tangent(state, s) for s in seeds), strict=True)
    mean = {name: torch.zeros_like(w) for name, w in expected.items()}
    for grad, tangent in pairs:
        for name in mean:
            mean[name] += grad * tangent[name] / len(seeds)
    flat, wanted = (torch.cat([tree[n].reshape(-1) for n in expected]) for tree in (mean, expected))
    # for n weights and q directions the expected cosine is about sqrt(q / (q + n))
    assert float(torch.cosine_similarity(flat, wanted, dim=0)) > 0.97
    assert 0.9 < float(flat @ wanted / (wanted @ wanted)) < 1.1


@pytest.mark.parametrize("scale", ["unit", "rms"])
@pytest.mark.parametrize("estimator", KINDS)
def test_projected_gradients_equal_the_formula(small_model: Models, estimator: Any, scale: Any) -> None:
    model = small_model()
    state = LatticeState(model, "all", scale, threads=1)
    seeds, epsilon = [5, 2**64 - 1, 77], 2.0**-8  # 2**-8 is a whole number of every grid unit
    base = _weights(model)

    def at(seed: int, sign: float) -> np.ndarray:
        tangent = _tangent(state, seed)
        return _losses(model, {n: w + sign * epsilon * tangent[n] for n, w in base.items()}).numpy()

    plus = np.stack([at(s, 1) for s in seeds])
    expected = {
        "two-sided": np.stack([(at(s, 1) - at(s, -1)) / (2 * epsilon) for s in seeds]),
        "one-sided": np.stack([(p - at(seeds[0], 0)) / epsilon for p in plus]),
        "leave-one-out": np.stack([(plus[j] - np.delete(plus, j, 0).mean(axis=0)) / epsilon for j in range(3)]),
    }[estimator]

    result = _measure(state, _loss_fn(model), seeds, epsilon=epsilon, estimator=estimator)

    np.testing.assert_allclose(result.per_example, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(result.projected_grads, expected.mean(axis=1), rtol=1e-6)
    assert result.projected_grads.dtype == np.float32
    assert result.examples == EXAMPLES
    assert result.per_example.shape == (3, EXAMPLES)


def test_leave_one_out_gradients_sum_to_zero(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)

    result = _measure(state, _loss_fn(state.model), [1, 2, 3, 4], epsilon=1e-3, estimator="leave-one-out")

    assert abs(result.per_example.sum()) < 1e-9 * np.abs(result.per_example).sum()


@pytest.mark.parametrize("queries", [2, 3, 8])
@pytest.mark.parametrize("estimator", KINDS)
def test_passes_and_forwards_of_a_step(small_model: Models, estimator: Any, queries: int) -> None:
    state = LatticeState(small_model(), "all", threads=1)
    config = EstimatorConfig(estimator=estimator, num_queries=queries)
    calls = []
    loss_fn = _loss_fn(state.model)

    zo_step(state, lambda: (calls.append(1), loss_fn())[1], 9, 0, config, 1e-3)

    expected = {
        "two-sided": (2 * queries + 1, 2 * queries),
        "one-sided": (queries + 1, queries + 1),
        "leave-one-out": (queries + 1, queries),
    }
    assert (state.passes, len(calls)) == expected[estimator]
    assert config.forwards == len(calls)


@pytest.mark.parametrize("estimator", KINDS)
def test_a_step_is_the_fused_update_and_nothing_else(small_model: Models, weight_bytes: Reader, estimator: Any) -> None:
    stepped, replayed = small_model(), small_model()
    state = LatticeState(stepped, "all", threads=1)

    result = zo_step(state, _loss_fn(stepped), 9, 4, EstimatorConfig(estimator, 3, 1e-3), 2e-2)
    updates = [
        Update(direction_seed(9, 4, j), float(np.float32(-2e-2 * float(g) / 3)))
        for j, g in enumerate(result.projected_grads)
    ]
    LatticeState(replayed, "all", threads=1).apply(updates)

    assert weight_bytes(stepped) == weight_bytes(replayed)
    assert weight_bytes(stepped) != weight_bytes(small_model())
    assert step_updates([u.seed for u in updates], result.projected_grads, 2e-2) == updates


@pytest.mark.parametrize("estimator", KINDS)
def test_narrowed_scalars_are_what_is_applied_and_reported(
    small_model: Models, weight_bytes: Reader, estimator: Any
) -> None:
    model, other = small_model(), small_model()
    state, elsewhere = (LatticeState(m, "all", threads=1) for m in (model, other))
    config = EstimatorConfig(estimator, 3, 1e-3)
    seeds = [direction_seed(5, 2, query) for query in range(3)]

    result = zo_step(state, _loss_fn(model), 5, 2, config, 0.1, np.sign)
    elsewhere.apply(step_updates(seeds, np.sign(result.projected_grads), 0.1))

    assert set(np.abs(result.projected_grads)) == {1.0}
    assert weight_bytes(model) == weight_bytes(other)


def test_quanta_of_a_step_are_counted(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)

    zo_step(state, _loss_fn(state.model), 1, 0, EstimatorConfig(num_queries=3), 1e-12)

    assert (state.zero_quanta, state.quanta) == (15, 15)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("estimator", {"estimator": "spsa"}),
        ("num-queries", {"num_queries": 0}),
        ("num-queries", {"num_queries": 65536}),
        ("num-queries", {"estimator": "leave-one-out", "num_queries": 1}),
        ("epsilon", {"epsilon": -1e-3}),
        ("epsilon", {"epsilon": float("nan")}),
        ("epsilon", {"epsilon": float("inf")}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        EstimatorConfig(**arguments)


def test_a_scalar_loss_is_one_example(small_model: Models) -> None:
    state = LatticeState(small_model(), "all", threads=1)
    loss_fn = _loss_fn(state.model)

    result = _measure(state, lambda: loss_fn().mean(), [1, 2], epsilon=1e-3)

    assert result.examples == 1
    assert result.per_example.shape == (2, 1)
