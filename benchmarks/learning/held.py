"""Guarded rounds whose steps are measured with frozen weights in another precision."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.guarded import GuardedRounds
from benchmarks.learning.method import Settings
from benchmarks.learning.rates import Rate
from zo_common.estimator.local_steps import LocalResult
from zo_common.ledger.record import Contribution
from zo_common.models.frozen.hold import hold
from zo_common.models.frozen.originals import Originals


class HeldRounds(GuardedRounds):
    """As `GuardedRounds`; the guard, the curve and the final evaluation see the weights in float32.

    Tail, ε and the precision of the rest are the loss check's with float32 weights, so that nothing but the frozen
    weights differs from "auto".

    Args:
        precision: "bfloat16", "float16" or "int8".
    """

    def __init__(self, crowd: Crowd, settings: Settings, rate: Rate, *, precision: str) -> None:
        self._precision, self._held = precision, False
        self._originals = Originals(crowd.task.model)
        super().__init__(crowd, settings, rate)

    def measure(self, device: int, seed: int, learning_rate: float) -> LocalResult:
        """As `LatticeRounds.measure`."""
        self._hold(True)
        return super().measure(device, seed, learning_rate)

    def apply(self, contributions: Sequence[Contribution]) -> None:
        """As `LatticeRounds.apply`; from here on, until the next measurement, all is float32."""
        self._hold(False)
        super().apply(contributions)

    def _hold(self, held: bool) -> None:
        if held != self._held:
            precision = self._precision if held else "float32"
            hold(self.crowd.model, list(self.state_of_weights.exponents), precision, self._originals)
            self._held = held
