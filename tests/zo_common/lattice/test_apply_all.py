"""A round is applied in passes of bounded size, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from zo_common.errors import LatticeOverflow
from zo_common.lattice.grid import MAX_UNITS
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger import replay as replay_module
from zo_common.ledger.replay import apply_all

Reader = Callable[[nn.Module], dict[str, bytes]]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "BATCH", 4)


def _state() -> LatticeState:
    generator = torch.Generator().manual_seed(3)
    weights = [nn.Parameter(0.1 * torch.randn(count, generator=generator)) for count in (300, 7)]
    return LatticeState(nn.ParameterList(weights), "all", threads=1)


def _updates(count: int, size: float = 1e-3) -> list[Update]:
    scalars = np.random.default_rng(1).standard_normal(count).astype(np.float32)
    return [Update(7 + j, float(np.float32(size * scalar))) for j, scalar in enumerate(scalars)]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 19])
@pytest.mark.parametrize("sign", [1, -1])
def test_batches_end_where_one_pass_does(weight_bytes: Reader, count: int, sign: int) -> None:
    at_once, batched = _state(), _state()
    seen: list[tuple[int, int]] = []

    at_once.apply(_updates(count), sign)
    apply_all(batched, _updates(count), sign, lambda done, total: seen.append((done, total)))

    assert weight_bytes(batched.model) == weight_bytes(at_once.model)
    assert (batched.quanta, batched.zero_quanta) == (at_once.quanta, at_once.zero_quanta)
    assert seen == [(min(done, count), count) for done in range(4, count + 4, 4)]


def test_no_pass_is_larger_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    state = _state()
    sizes: list[int] = []
    apply = state.apply
    monkeypatch.setattr(state, "apply", lambda updates, sign=1: (sizes.append(len(updates)), apply(updates, sign))[1])

    apply_all(state, _updates(10))

    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, 9, 18])
def test_a_late_overflow_takes_everything_back(weight_bytes: Reader, place: int, sign: int) -> None:
    state = _state()
    state.apply(_updates(3))
    before, counted = weight_bytes(state.model), (state.quanta, state.zero_quanta)
    updates = _updates(19)
    updates[place] = Update(99, _beyond(state))

    with pytest.raises(LatticeOverflow):
        apply_all(state, updates, sign)

    assert weight_bytes(state.model) == before
    assert (state.quanta, state.zero_quanta) == counted
    apply_all(state, _updates(19))  # and it goes on
    other = _state()
    other.apply(_updates(3) + _updates(19))
    assert weight_bytes(state.model) == weight_bytes(other.model)


def test_only_the_end_must_be_legal(weight_bytes: Reader) -> None:
    """A batch that alone would leave the lattice is legal where later ones bring the weights back."""
    state = _state()
    far = _beyond(state) / 3
    there, back = [Update(5, far)] * 4, [Update(5, -far)] * 4
    before = weight_bytes(state.model)

    with pytest.raises(LatticeOverflow):
        apply_all(state, there)
    assert weight_bytes(state.model) == before
    apply_all(state, [*there, *back])

    assert weight_bytes(state.model) == before


def _beyond(state: LatticeState) -> float:
    """A coefficient that moves a weight of every tensor out of its range."""
    return float(np.float32(max(2.0 ** (t.grid_exponent - t.scale_exponent) for t in state.tensors) * MAX_UNITS * 1.5))
