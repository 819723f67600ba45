"""The interface of a training method, the cost of its rounds, and the settings that all methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from zo_common.estimator.settings import Estimator
from zo_common.lattice.grid import Scale


@dataclass(frozen=True)
class Cost:
    """Costs of rounds, which add up.

    Attributes:
        forwards: utterances sent through the model, all devices together; one of eight directions is eight.
        backwards: of them, how many were also run backwards.
        up, down: bytes of payload a device.
    """

    forwards: int = 0
    backwards: int = 0
    up: int = 0
    down: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.up + other.up,
            self.down + other.down,
        )

    @property
    def passes(self) -> int:
        """Forward passes as budgets count them: a backward pass is worth two forward passes."""
        return self.forwards + 2 * self.backwards


@dataclass(frozen=True)
class Settings:
    """A trial's settings; what a method has no use for it leaves alone.

    Attributes:
        method: name in `benchmarks.learning.methods.METHODS`.
        tensors: pattern or preset of the trained tensors.
        learning_rate: as the method's own source counts it; 0 where it is measured.
        queries: directions a step of a device.
        epsilon, tail_tokens: 0 and −1 for what the loss check of the first device's recordings chooses.
        scale: of the lattice.
        local_steps: of a device a round.
        clip_utterances: multiple of a step's median norm to which an utterance's scalars are clipped; 0: not at all.
        devices: how many share the training speech.
        extra: what a variant needs besides, as (name, value).
    """

    method: str
    tensors: str
    learning_rate: float = 0.0
    schedule: str = "constant"
    scale: Scale = "unit-wide"
    estimator: Estimator = "leave-one-out"
    queries: int = 8
    epsilon: float = 1e-3
    tail_tokens: int = 256
    batch_size: int = 16
    local_steps: int = 1
    clip_utterances: float = 0.0
    devices: int = 8
    seed: int = 0
    extra: tuple[tuple[str, float], ...] = ()

    def of(self, name: str, default: float) -> float:
        """Return a variant's number."""
        return dict(self.extra).get(name, default)


class Method(Protocol):
    """A way of learning, bound to a crowd's model."""

    def round(self, number: int) -> Cost:
        """Run one round, from 1, in which every device takes part.

        Raises:
            ZOError: the loss or the weights left their range; the run is over, and its model is not judged.
        """

    def finish(self) -> None:
        """Put the final weights into the model for evaluation; called once, after the last round."""

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs on a fresh model, in a form for `torch.save`."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of an earlier process."""
