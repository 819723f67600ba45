"""The learning rate of a round: a number with a schedule, or what the round itself measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from server.guards.guard import Progress
from server.rounds.pooled_curvature import StepRow
from server.rounds.step_size import MeasuredStep
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.estimator.curvature import RelativeCurvature
from zo_common.estimator.local_steps import LocalResult


class Rate(Protocol):
    """Decides how far a round goes.

    Attributes:
        asks: further arguments of `run_local_steps`.
    """

    asks: Mapping[str, Any]

    def rate_of_round(self, number: int, results: Sequence[LocalResult]) -> float:
        """Return the learning rate of round `number`, from 1, for the mean over queries.

        Args:
            results: of all devices, measured at the weights before the round; empty where it is asked what a device
                should use in its own local steps.
        """

    def state(self) -> list[dict[str, Any]]:
        """Return what `restore` needs."""

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Continue after the rounds of an earlier process."""


class FixedRate:
    """A number that a run's schedule lets fall."""

    asks: Mapping[str, Any] = {}

    def __init__(self, learning_rate: float, schedule: str, rounds: int) -> None:
        self._config = RunConfig.from_mapping(
            {"learning-rate": learning_rate, "lr-schedule": schedule, "num-server-rounds": max(1, rounds)}
        )

    def rate_of_round(self, number: int, results: Sequence[LocalResult]) -> float:
        """As `Rate.rate_of_round`; after the last round of the schedule the last rate stands."""
        return self._config.learning_rate_at(min(number, self._config.num_server_rounds))

    def state(self) -> list[dict[str, Any]]:
        """As `Rate.state`: the round's number says all."""
        return []

    def restore(self, state: list[dict[str, Any]]) -> None:
        """As `Rate.restore`."""


@dataclass(frozen=True)
class _Replies:
    """A round's results as the server's step asks for them."""

    results: Sequence[LocalResult]

    @property
    def accepted(self) -> int:
        return len(self.results)

    def curvatures(self) -> list[RelativeCurvature]:
        found = [
            result.curvature.relative(float(np.square(result.projected_grads.astype(np.float64)).mean()))
            for result in self.results
            if result.curvature is not None
        ]
        return [each for each in found if each is not None]

    def scalars(self) -> list[ClientScalars]:
        return [ClientScalars(number, 0, 1, each.projected_grads) for number, each in enumerate(self.results)]


class MeasuredRate(MeasuredStep):
    """Step size of a server whose rounds are in memory alone.

    Attributes:
        progress: what a guard found; None without one.
    """

    asks: Mapping[str, Any] = {"curvature": True}

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, lambda: self.progress)
        self.progress: list[Progress] | None = None

    def rate_of_round(self, number: int, results: Sequence[LocalResult]) -> float:
        """As `Rate.rate_of_round`."""
        return self.used(number, _Replies(results), number) if results else self.planned(number)

    def state(self) -> list[dict[str, Any]]:
        """Return what `restore` needs."""
        return [asdict(row) for row in self._rows]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Continue after the rounds of an earlier process."""
        self._rows = [StepRow(**row) for row in state]

    def _write(self, row: StepRow) -> None:
        self._rows.append(row)
