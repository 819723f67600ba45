"""Devices that fit one vector: a quadratic loss with noise of the devices' own, a round in a millisecond."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zo_common.directions.seeds import direction_seed, fold_in, tensor_id
from zo_common.lattice.kernels.plain import direction_signs
from zo_common.lattice.state import LatticeState
from zo_common.ledger.record import Record
from zo_common.ledger.replay import apply_all
from zo_common.wire.plan import Plan, Reply, Status

WIDTH = 24
NAME = "weight"
TARGET = 0.1  # well within the lattice of small weights, ±¼


@lru_cache(maxsize=4)
def _directions(seed: int, queries: int) -> NDArray[np.float64]:
    """The round's directions, (q, WIDTH)."""
    rows = [
        direction_signs(direction_seed(seed, 0, query), tensor_id(NAME), 0, 1, torch.device("cpu"))
        for query in range(queries)
    ]
    return torch.stack(rows).reshape(queries, -1)[:, :WIDTH].double().numpy()


class QuadraticCrowd:
    """Mean of ½·(w − target − noise)² over the weights, w from 0; flipped labels have −target.

    Projected gradients are z · ∇L, what two sides of a quadratic give exactly.
    """

    def __init__(self, devices: int, noise: float = 0.05) -> None:
        self.devices = devices
        self._noise = noise
        self._model = nn.Linear(WIDTH, 1, bias=False).requires_grad_(False)
        self._model.weight.data.zero_()
        self._state = LatticeState(self._model, "all", "unit", kernel="torch")
        self._records: list[Record] = []

    def restart(self) -> int:
        """As `Crowd.restart`."""
        for record in self._records:
            apply_all(self._state, record.updates(), sign=-1)
        self._records.clear()
        return 1

    def examples(self, device: int) -> int:
        """As `Crowd.examples`: a batch is new each time."""
        return 100

    def measure(self, plan: Plan, flipped: bool) -> Reply:
        """As `Crowd.measure`."""
        rng = np.random.default_rng(fold_in(plan.seed, 99, plan.client_id))
        noise = self._noise * rng.standard_normal((plan.batch_size, WIDTH)).mean(axis=0)
        target = noise + (-TARGET if flipped else TARGET)
        gradient = (self._model.weight[0].double().numpy() - target) / WIDTH
        grads = (_directions(plan.seed, plan.estimator.num_queries) @ gradient).astype(np.float32)[None]
        numbers = plan.server_round, plan.server_round - 1, plan.client_id, plan.seed, 0, plan.batch_size
        return Reply(Status.OK, *numbers, projected_grads=grads)

    def move(self, record: Record) -> None:
        """As `Crowd.move`."""
        apply_all(self._state, record.updates())
        self._records.append(record)

    def evaluate(self) -> dict[str, float]:
        """As `Crowd.evaluate`: the loss without noise."""
        return {"loss": float(0.5 * (self._model.weight - TARGET).square().mean())}
