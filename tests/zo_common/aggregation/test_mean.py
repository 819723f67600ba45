"""The server's rebuilt update is FedAvg of the clients' deltas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import local_contribution
from torch import nn

from zo_common.aggregation.mean import ClientScalars, aggregate, client_weights
from zo_common.estimator.local_steps import run_local_steps
from zo_common.estimator.settings import EstimatorConfig
from zo_common.lattice.state import LatticeState

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
CONFIG = EstimatorConfig(num_queries=3, epsilon=1e-3)
STEPS, RATE = 2, 3e-2


def _scalars(client_id: int, seed: int, examples: int, shape: tuple[int, int] = (2, 3)) -> ClientScalars:
    grads = np.random.default_rng(client_id).normal(size=shape).astype(np.float32)
    return ClientScalars(client_id, seed, examples, grads)


def _units(state: LatticeState) -> NDArray[np.float64]:
    return np.concatenate([t.weight.double().reshape(-1).numpy() * 2.0**-t.grid_exponent for t in state.tensors])


def _client_round(model: nn.Module, client_id: int, seed: int, examples: int) -> tuple[ClientScalars, NDArray[Any]]:
    """What a client reports, and by how many units its own steps moved each weight."""
    state = LatticeState(model, "all", "rms", threads=1)
    inputs = torch.randn(examples, 3, generator=torch.Generator().manual_seed(client_id))
    result = run_local_steps(
        state, lambda _: lambda: (model(inputs) - inputs[:, :2]).square().mean(dim=1), seed, STEPS, CONFIG, RATE
    )
    start = _units(state)
    state.apply(local_contribution(result, seed, client_id, RATE).updates())
    return ClientScalars(client_id, seed, examples, result.projected_grads), _units(state) - start


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_server_rebuilds_fedavg_within_the_grid(small_model: Models, weighting: Any, shared: bool) -> None:
    examples = [4, 9, 5]
    seeds = [77, 77, 77] if shared else [11, 2**63, 13]
    rounds = [_client_round(small_model(), i + 1, s, n) for i, (s, n) in enumerate(zip(seeds, examples, strict=True))]
    shares = [n / sum(examples) for n in examples] if weighting == "examples" else [1 / 3] * 3
    fedavg = sum(share * delta for share, (_, delta) in zip(shares, rounds, strict=True))
    server = LatticeState(small_model(), "all", "rms", threads=1)
    start = _units(server)

    contributions = aggregate([reply for reply, _ in rounds], RATE, weighting, shared)
    assert len(contributions) == (1 if shared else 3)
    server.apply([u for c in contributions for u in c.updates()])

    # each applied direction is rounded to half a unit, and each client's own rounding enters with its weight;
    # float32 coefficients are off by at most 2**-24 of their size, far below the rest here
    directions = STEPS * CONFIG.num_queries
    bound = 0.5 * directions * len(contributions) + 0.5 * directions + 0.1
    deviation = np.abs(_units(server) - start - fedavg)
    assert deviation.max() <= bound
    assert np.abs(fedavg).max() > 100 * bound


def test_one_client_of_weight_one_is_rebuilt_exactly(small_model: Models, weight_bytes: Reader) -> None:
    reply, delta = _client_round(small_model(), 5, 2**64 - 1, 7)
    server = LatticeState(small_model(), "all", "rms", threads=2)
    start = _units(server)

    (contribution,) = aggregate([reply], RATE)
    server.apply(contribution.updates())

    np.testing.assert_array_equal(_units(server) - start, delta)
    assert (contribution.seed, contribution.client_id) == (2**64 - 1, 5)


def test_coefficients_are_float64_products_rounded_once() -> None:
    clients = [_scalars(2, 20, 3), _scalars(1, 10, 4)]

    contributions = aggregate(clients, 0.3)

    assert [(c.client_id, c.seed) for c in contributions] == [(1, 10), (2, 20)]
    for contribution, client in zip(contributions, [clients[1], clients[0]], strict=True):
        weight = client.num_examples / 7
        expected = [[float(np.float32(-0.3 * weight * float(g) / 3)) for g in row] for row in client.projected_grads]
        assert contribution.coefficients.dtype == np.float32
        assert contribution.coefficients.tolist() == expected


def test_shared_directions_collapse_to_one_contribution() -> None:
    clients = [_scalars(i, 99, 2 + i) for i in range(1, 5)]

    (contribution,) = aggregate(clients, 0.1, shared=True)

    weighted = sum(-0.1 * (c.num_examples / 18) * c.projected_grads.astype(np.float64) / 3 for c in clients)
    assert (contribution.seed, contribution.client_id) == (99, 0)
    np.testing.assert_allclose(contribution.coefficients, weighted, rtol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_the_order_of_replies_does_not_matter(shared: bool) -> None:
    clients = [_scalars(i, 99 if shared else 100 + i, 3 * i) for i in (3, 1, 2)]
    expected = aggregate(clients, 1e-4, shared=shared)

    assert len(expected) == (1 if shared else 3)
    for order in itertools.permutations(clients):
        assert aggregate(order, 1e-4, shared=shared) == expected


def test_one_client_alone_keeps_its_id_unless_directions_are_shared() -> None:
    (own,) = aggregate([_scalars(7, 99, 3)], 0.1)
    (common,) = aggregate([_scalars(7, 99, 3)], 0.1, shared=True)

    assert (own.client_id, common.client_id) == (7, 0)
    assert own.coefficients.tolist() == common.coefficients.tolist()


def test_equal_seeds_alone_do_not_make_a_round_shared() -> None:
    clients = [_scalars(1, 99, 3), _scalars(2, 99, 4)]

    apart, together = aggregate(clients, 0.1), aggregate(clients, 0.1, shared=True)

    assert [(c.seed, c.client_id) for c in apart] == [(99, 1), (99, 2)]
    total = sum(c.coefficients.astype(np.float64) for c in apart)
    np.testing.assert_allclose(together[0].coefficients, total, rtol=1e-6)


def test_weights_sum_to_one_and_follow_the_examples() -> None:
    clients = [_scalars(1, 1, 10), _scalars(2, 2, 30), _scalars(3, 3, 60)]

    assert client_weights(clients, "examples") == pytest.approx([0.1, 0.3, 0.6])
    assert client_weights(clients, "uniform") == pytest.approx([1 / 3] * 3)
    assert sum(client_weights(clients, "examples")) == pytest.approx(1.0)


def test_uniform_weights_ignore_the_number_of_examples() -> None:
    few = [_scalars(1, 1, 1), _scalars(2, 2, 1)]
    many = [_scalars(1, 1, 1), _scalars(2, 2, 1000)]

    assert aggregate(few, 0.1, "uniform") == aggregate(many, 0.1, "uniform")
    assert aggregate(few, 0.1, "examples") != aggregate(many, 0.1, "examples")
