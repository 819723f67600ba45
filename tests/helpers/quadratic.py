"""Devices that fit one vector: a quadratic loss with noise of the devices' own, a round in a millisecond."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from zo_common.contribution import Record
from zo_common.local_steps import run_local_steps
from zo_common.messages import Plan, Reply, Status
from zo_common.replay import apply_all
from zo_common.seeds import fold_in
from zo_common.state import LatticeState

WIDTH = 24


class QuadraticCrowd:
    """Loss ½·|w − target − noise|² a weight, target 1, w from 0; flipped labels have −target. The loss starts at ½."""

    def __init__(self, devices: int, noise: float = 0.5) -> None:
        self.devices = devices
        self._noise = noise
        self._model = nn.Linear(WIDTH, 1, bias=False).requires_grad_(False)
        self._model.weight.data.zero_()
        self._state = LatticeState(self._model, "all", "unit", reference=True)
        self._records: list[Record] = []

    def restart(self) -> int:
        """As `Crowd.restart`."""
        for record in self._records:
            apply_all(self._state, record.updates(), sign=-1)
        self._records.clear()
        return 1

    def measure(self, plan: Plan, flipped: bool) -> Reply:
        """As `Crowd.measure`."""
        rng = np.random.default_rng(fold_in(plan.seed, 99, plan.client_id))
        noise = self._noise * rng.standard_normal((plan.batch_size, WIDTH))
        targets = torch.from_numpy((noise + (-1.0 if flipped else 1.0)).astype(np.float32))
        result = run_local_steps(
            self._state,
            lambda _: lambda: 0.5 * (self._model.weight - targets).square().mean(dim=1),
            plan.seed,
            plan.local_steps,
            plan.estimator,
            plan.learning_rate,
        )
        return Reply(
            Status.OK,
            plan.server_round,
            plan.server_round - 1,
            plan.client_id,
            plan.seed,
            0,
            plan.batch_size,
            result.loss,
            result.projected_grads,
        )

    def move(self, record: Record) -> None:
        """As `Crowd.move`."""
        apply_all(self._state, record.updates())
        self._records.append(record)

    def evaluate(self) -> dict[str, float]:
        """As `Crowd.evaluate`: the loss without noise."""
        return {"loss": float(0.5 * (self._model.weight - 1.0).square().mean())}
