"""The learning rate of a round: a number with a schedule, or what the round itself measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Protocol

from zo_common.config import RunConfig
from zo_common.errors import ConfigError
from zo_common.local_steps import LocalResult, run_local_steps

LEAST_SIGNAL = 0.05  # of the mean square of the projected gradients


class Rate(Protocol):
    """Decides how far a round goes.

    Attributes:
        asks: further arguments of `run_local_steps`.
    """

    asks: Mapping[str, Any]

    def rate_of_round(self, number: int, results: Sequence[LocalResult]) -> float:
        """The learning rate of round `number`, from 1, for the mean over queries.

        Args:
            results: of all devices, measured at the weights before the round; empty where it is asked what a device
                should use in its own local steps.
        """


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


class MeasuredRate:
    """The step that lowers a quadratic model most: α = s / (m (t + (Q − 1) ρ)) a direction, α·Q for their mean.

    m is the mean square of the projected gradients, v the part of it that is noise, s = max(m − v, 0.05 m); t is the
    curvature along one direction, ρ that along the gradient; Q are the directions of all devices together.
    """

    def __init__(self) -> None:
        self._last = 0.0
        known = signature(run_local_steps).parameters
        self.asks: Mapping[str, Any] = {"curvature": True} if "curvature" in known else {}

    def rate_of_round(self, number: int, results: Sequence[LocalResult]) -> float:
        """As `Rate.rate_of_round`; devices' own local steps go as far as the last round.

        Raises:
            ConfigError: the estimator measures no curvature.
        """
        if results:
            found = [c for c in (getattr(result, "curvature", None) for result in results) if c is not None]
            if len(found) < len(results):
                raise ConfigError("the step cannot be measured: local steps tell no curvature; use a fixed rate")
            self._last = step_of(
                square=_mean([float((r.projected_grads.astype(float) ** 2).mean()) for r in results]),
                noise=_mean([c.noise for c in found]),
                per_direction=_mean([c.per_direction for c in found]),
                along=_mean([c.along_signal + c.along_noise for c in found]),
                directions=sum(r.projected_grads.shape[1] for r in results),
            )
        return self._last


def step_of(square: float, noise: float, per_direction: float, along: float, directions: int) -> float:
    """The learning rate for the mean over `directions`; 0 where nothing was measured.

    Args:
        square: m; `noise`: v; `per_direction`: t.
        along: gᵀFg of the mean gradient g, so that ρ = along / m.
    """
    if not (square > 0 and per_direction > 0):
        return 0.0
    signal = max(square - noise, LEAST_SIGNAL * square)
    curvature = per_direction + (directions - 1) * max(0.0, along / square)
    return directions * signal / (square * curvature)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
