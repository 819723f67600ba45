"""Zeroth-order steps as published, on one machine with all recordings at hand: step after step, no rounds to wait for.

A round here is one step on a batch of each device, one after the other: the rules lose nothing by a federation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from benchmarks.harness.plain import plain_step
from benchmarks.learning.crowd import Crowd
from benchmarks.learning.method import Cost, Settings
from zo_common.directions.seeds import client_seed, direction_seed
from zo_common.errors import NonFiniteLoss
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn, Walker, measure
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import select
from zo_common.lattice.update import Update
from zo_common.ledger.replay import apply_all


class SequentialSteps(ABC):
    """One step a device, each from the weights that the last one left.

    Attributes:
        passes: forward passes a step.
    """

    passes: int

    def __init__(self, crowd: Crowd, settings: Settings) -> None:
        self.crowd, self.settings = crowd, settings
        self._losses = crowd.losses(select(crowd.model, settings.tensors), settings.tail_tokens)

    @abstractmethod
    def step(self, loss_fn: LossFn, seed: int) -> None:
        """Measure and move the weights."""

    def round(self, number: int) -> Cost:
        """As `Method.round`."""
        forwards = 0
        for device in range(self.crowd.devices):
            seed = client_seed(self.settings.seed, number, device)
            chosen = self.crowd.draw(device, seed, 0, self.settings.batch_size)
            self.step(self._losses(self.crowd.batch(device, chosen)), seed)
            forwards += self.passes * len(chosen)
        return Cost(forwards)

    def finish(self) -> None:
        """Do nothing: the last step's weights are the model."""
        return


class GaussianSteps(SequentialSteps):
    """MeZO (arXiv 2305.17333, algorithm 2), and ZO-ASR (2512.01267), whose code applies the sum over queries.

    Args:
        total: the sum, not the mean: `learning_rate` is then as ZO-ASR's settings give it.
    """

    def __init__(self, crowd: Crowd, settings: Settings, total: bool = False) -> None:
        super().__init__(crowd, settings)
        self.passes = 2 * settings.queries
        self._weights = list(select(crowd.model, settings.tensors).values())
        self._rate = settings.learning_rate * (settings.queries if total else 1)

    def step(self, loss_fn: LossFn, seed: int) -> None:
        """As `SequentialSteps.step`, in place."""
        s = self.settings
        seeds = [direction_seed(seed, 0, query) % (1 << 63) for query in range(s.queries)]
        grads = plain_step(self._weights, loss_fn, seeds, s.epsilon, self._rate, in_place=True)
        if not np.isfinite(grads).all():
            raise NonFiniteLoss("the loss is not finite: lower the learning rate")

    def state(self) -> dict[str, Any]:
        """As `Method.state`: weights drift, and no replay would give them back."""
        return {"weights": [weight.data.clone() for weight in self._weights]}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Method.restore`."""
        for weight, kept in zip(self._weights, state["weights"], strict=True):
            weight.data.copy_(kept)


class FzooSteps(SequentialSteps):
    """FZOO (arXiv 2506.09034): one-sided along ±1 directions, the step divided by the deviation of the losses.

    θ ← θ − η/(N σ) Σ_j g_j u_j, with g_j = (l_j − l_0)/ε and σ the standard deviation of the N perturbed losses.
    """

    def __init__(self, crowd: Crowd, settings: Settings) -> None:
        super().__init__(crowd, settings)
        self.passes = settings.queries + 1
        self._state = LatticeState(crowd.model, settings.tensors)
        self._config = EstimatorConfig("one-sided", settings.queries, settings.epsilon)
        self._moves: list[Update] = []

    @torch.inference_mode()
    def step(self, loss_fn: LossFn, seed: int) -> None:
        """As `SequentialSteps.step`, on the lattice: exact, which takes nothing from the rule."""
        seeds = [direction_seed(seed, 0, query) for query in range(self.settings.queries)]
        walker = Walker(self._state, self.settings.epsilon)
        try:
            grads = measure(walker, loss_fn, seeds, self._config).projected_grads.astype(np.float64)
        finally:
            walker.move(None)
        self._move([Update(s, c) for s, c in zip(seeds, self.coefficients(grads), strict=True)])

    def coefficients(self, grads: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
        """Return −η g_j / (N σ); nothing where all losses are equal. The clean loss cancels in σ."""
        deviation = float(grads.std(ddof=1)) * self.settings.epsilon
        if deviation == 0:
            return [0.0] * len(grads)
        scaled = -self.settings.learning_rate * grads / (len(grads) * deviation)
        return [float(np.float32(c)) for c in scaled]

    def _move(self, updates: list[Update]) -> None:
        apply_all(self._state, updates)
        self._moves += updates

    def state(self) -> dict[str, Any]:
        """As `Method.state`."""
        return {"moves": [(u.seed, u.coefficient) for u in self._moves]}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Method.restore`, by exact replay."""
        self._move([Update(seed, coefficient) for seed, coefficient in state["moves"]])
