"""K local ZO-SGD steps of one client, which are afterwards undone bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zo_common.directions.seeds import direction_seed
from zo_common.estimator.curvature import Curvature, mean_curvature
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import LossFn, Release, Weigh, step_updates, zo_step
from zo_common.lattice.state import LatticeState
from zo_common.ledger.replay import apply_all


@dataclass(frozen=True)
class LocalResult:
    """Projected gradients, float32 (K, q), the mean loss of each step, (K,), and the mean curvature if requested."""

    projected_grads: NDArray[np.float32]
    losses: tuple[float, ...]
    curvature: Curvature | None = None

    @property
    def loss(self) -> float:
        """Mean loss over the steps."""
        return float(np.mean(self.losses))


def run_local_steps(
    state: LatticeState,
    loss_of_step: Callable[[int], LossFn],
    seed: int,
    local_steps: int,
    config: EstimatorConfig,
    learning_rate: float,
    on_step: Callable[[int, float], None] | None = None,
    release: Release | None = None,
    *,
    weigh: Weigh | None = None,
    curvature: bool = False,
) -> LocalResult:
    """Run K steps from the global weights and return to them.

    1. Step k draws its batch, `loss_of_step(k)`, and moves the weights (`zo_step`). The last one only measures, as its
       move would be undone at once.
    2. At the end, or on any error, all steps taken are replayed negated, which restores the global weights without a
       copy.

    Args:
        seed: the client's seed of the round.
        on_step: called with (step, loss) after each step.
        release: as in `zo_step`; the next local step starts from the released update, as in a replay.
        weigh: as in `zo_step`.
        curvature: as in `zo_step`.
    """
    grads: list[NDArray[np.float32]] = []
    losses: list[float] = []
    curved: list[Curvature] = []
    options: dict[str, Any] = {"release": release, "weigh": weigh, "curvature": curvature}
    try:
        for step in range(local_steps):
            apply = step + 1 < local_steps
            result = zo_step(state, loss_of_step(step), seed, step, config, learning_rate, apply=apply, **options)
            grads.append(result.projected_grads)
            losses.append(result.loss)
            curved += [result.curvature] if result.curvature is not None else []
            if on_step is not None:
                on_step(step, result.loss)
    finally:
        undo = [
            update
            for step, row in enumerate(grads[: local_steps - 1])
            for update in step_updates([direction_seed(seed, step, j) for j in range(len(row))], row, learning_rate)
        ]
        apply_all(state, undo, sign=-1)
    return LocalResult(np.stack(grads), tuple(losses), mean_curvature(curved) if curved else None)
