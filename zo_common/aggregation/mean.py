"""Aggregation of scalars, for which the server's update equals the FedAvg of the clients' deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zo_common.ledger.record import Contribution

Weighting = Literal["examples", "uniform"]


@dataclass(frozen=True)
class ClientScalars:
    """A validated reply: projected gradients (K, q) of `seed`, measured on `num_examples` utterances.

    They are float32 or, if only the sum of a cohort is known, its mean in float64.
    """

    client_id: int
    seed: int
    num_examples: int
    projected_grads: NDArray[np.floating[Any]]


def client_weights(clients: Sequence[ClientScalars], weighting: Weighting) -> list[float]:
    """Return FedAvg weights that sum to one: by number of examples (McMahan et al. 2017) or uniform."""
    if weighting == "uniform":
        return [1.0 / len(clients)] * len(clients)
    total = sum(c.num_examples for c in clients)
    return [c.num_examples / total for c in clients]


def aggregate(
    clients: Sequence[ClientScalars], learning_rate: float, weighting: Weighting = "examples", shared: bool = False
) -> tuple[Contribution, ...]:
    """Return −learning_rate · weight_i · g_ikj / q, a float64 product in this order, rounded once to float32.

    With `shared` directions all clients have one seed and are summed into a single contribution of client 0. Ledger and
    download then do not grow with the number of clients.
    """
    ordered = sorted(clients, key=lambda c: c.client_id)
    weights = client_weights(ordered, weighting)
    products = [
        -learning_rate * weight * client.projected_grads.astype(np.float64) / client.projected_grads.shape[1]
        for client, weight in zip(ordered, weights, strict=True)
    ]
    if shared:
        total = np.sum(np.stack(products), axis=0)
        return (Contribution(ordered[0].seed, 0, total.astype(np.float32)),)
    return tuple(
        Contribution(client.seed, client.client_id, product.astype(np.float32))
        for client, product in zip(ordered, products, strict=True)
    )
