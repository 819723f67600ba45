"""K local steps return to the global weights and describe their own update exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from references import local_contribution
from torch import nn

from zo_common.errors import NonFiniteLoss
from zo_common.estimator.local_steps import run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn
from zo_common.lattice.state import LatticeState
from zo_common.ledger import replay

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
CONFIG = EstimatorConfig(num_queries=3, epsilon=1e-3)
RATE = 3e-2


def _loss_of_step(model: nn.Module) -> Callable[[int], LossFn]:
    """A different batch in every step."""

    def of(step: int) -> LossFn:
        inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        return lambda: (model(inputs) - inputs[:, :2].sin()).square().mean(dim=1)

    return of


def test_local_steps_are_undone_to_the_bit(small_model: Models, weight_bytes: Reader) -> None:
    model = small_model()
    state = LatticeState(model, "all", "rms", threads=1)
    before, checksum = weight_bytes(model), state.checksum()
    during = []

    result = run_local_steps(
        state, _loss_of_step(model), 9, 4, CONFIG, RATE, on_step=lambda *_: during.append(weight_bytes(model))
    )

    assert weight_bytes(model) == before
    assert state.checksum() == checksum
    assert len({tuple(w.values()) for w in [before, *during]}) == 4
    assert during[3] == during[2]  # the last step only measures
    assert result.projected_grads.shape == (4, 3)
    assert result.projected_grads.dtype == np.float32


def test_steps_are_undone_in_batches_of_bounded_size(
    small_model: Models, weight_bytes: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    state = LatticeState(model, "all", "rms", threads=1)
    before, shift, sizes = weight_bytes(model), state.shift, []
    monkeypatch.setattr(replay, "BATCH", 5)
    monkeypatch.setattr(state, "shift", lambda seeds, units: (sizes.append(len(seeds)), shift(seeds, units)))

    run_local_steps(state, _loss_of_step(model), 9, 4, CONFIG, RATE, on_step=lambda *_: sizes.clear())

    assert sizes == [5, 4]
    assert weight_bytes(model) == before


def test_the_contribution_is_what_the_client_had_before_the_undo(small_model: Models, weight_bytes: Reader) -> None:
    model, other = small_model(), small_model()
    state, elsewhere = LatticeState(model, "all", threads=1), LatticeState(other, "all", threads=2)
    during: list[dict[str, bytes]] = []

    result = run_local_steps(
        state, _loss_of_step(model), 2**64 - 1, 5, CONFIG, RATE, on_step=lambda *_: during.append(weight_bytes(model))
    )
    moved = replace(result, projected_grads=result.projected_grads[:-1])  # the last step only measures
    elsewhere.apply(local_contribution(moved, 2**64 - 1, 7, RATE).updates())
    assert weight_bytes(other) == during[-1]
    elsewhere.apply(local_contribution(moved, 2**64 - 1, 7, RATE).updates(), sign=-1)

    contribution = local_contribution(result, 2**64 - 1, 7, RATE)
    elsewhere.apply(contribution.updates())
    assert (contribution.seed, contribution.client_id) == (2**64 - 1, 7)
    assert contribution.coefficients.dtype == np.float32
    elsewhere.apply(contribution.updates(), sign=-1)
    assert weight_bytes(other) == weight_bytes(model)


def test_the_same_seed_measures_the_same_scalars_again(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)

    first, second, other = (run_local_steps(state, _loss_of_step(model), seed, 3, CONFIG, RATE) for seed in (9, 9, 10))

    np.testing.assert_array_equal(first.projected_grads, second.projected_grads)
    assert first.losses == second.losses
    assert not np.array_equal(first.projected_grads, other.projected_grads)


def test_steps_and_losses_are_reported_in_order(small_model: Models) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    seen: list[tuple[int, float]] = []

    result = run_local_steps(
        state, _loss_of_step(model), 9, 3, CONFIG, RATE, on_step=lambda step, loss: seen.append((step, loss))
    )

    assert seen == list(enumerate(result.losses))
    assert result.loss == pytest.approx(sum(result.losses) / 3)


@pytest.mark.parametrize("failing_step", [0, 1, 3])
@pytest.mark.parametrize("place", ["batch", "loss", "nan", "callback"])
def test_any_failure_returns_to_the_global_weights(
    small_model: Models, weight_bytes: Reader, failing_step: int, place: str
) -> None:
    model = small_model()
    state = LatticeState(model, "all", threads=1)
    before = weight_bytes(model)
    good = _loss_of_step(model)

    def fail() -> torch.Tensor:
        raise KeyboardInterrupt

    def loss_of_step(step: int) -> LossFn:
        if step == failing_step and place == "batch":
            raise KeyboardInterrupt
        if step == failing_step and place == "loss":
            return fail
        if step == failing_step and place == "nan":
            return lambda: good(step)() * float("nan")
        return good(step)

    def on_step(step: int, loss: float) -> None:
        if step == failing_step and place == "callback":
            raise KeyboardInterrupt

    with pytest.raises(NonFiniteLoss if place == "nan" else KeyboardInterrupt):
        run_local_steps(state, loss_of_step, 9, 4, CONFIG, RATE, on_step=on_step)

    assert weight_bytes(model) == before
