"""Bounds of continual adaptation: a state's distance from its base, and exact ways back."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.adapt.record import AdaptationRecord, undo
from zo_common.errors import ConfigError
from zo_common.lattice.state import LatticeState


@dataclass(frozen=True)
class DriftBounds:
    """The limits that a `DriftGuard` enforces.

    Attributes:
        max_drift: maximum of `DriftGuard.drift`: 0.01 is a hundredth of the norm of the trained weights.
        max_objective: maximum of the objective that comes with each adaptation.
        anchor: share of the adaptations held that is undone after each new one, oldest first, rounded down: with 0.1, a
            tenth is undone each time, so about ten are held.
        window: maximum number of adaptations held; older ones are undone.
    """

    max_drift: float = math.inf
    max_objective: float = math.inf
    anchor: float = 0.0
    window: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_drift", "max_objective"):
            if math.isnan(getattr(self, name)):
                raise ConfigError(f"{name.replace('_', '-')} is not a number, expected a bound or infinity")
        if self.max_drift <= 0:
            raise ConfigError(f"max-drift is {self.max_drift}, expected a positive share of the weights' size")
        if not 0 <= self.anchor < 1:
            raise ConfigError(f"anchor is {self.anchor}, expected a share in [0, 1)")
        if self.window < 1:
            raise ConfigError(f"window is {self.window}, expected at least one adaptation")


class DriftGuard:
    """The adaptations that a state consists of, undone when they lead too far.

    Nothing is copied: every way back is an exact undo of records, so the base returns to the bit.
    """

    def __init__(self, state: LatticeState, bounds: DriftBounds | None = None) -> None:
        self._state = state
        self._bounds = bounds or DriftBounds()
        self._base = state.checksum()
        self._size = math.sqrt(sum(float(part.double().square().sum()) for _, part in state.pieces()))
        self._applied: deque[tuple[AdaptationRecord, NDArray[np.float64]]] = deque()

    @property
    def records(self) -> tuple[AdaptationRecord, ...]:
        """The records applied beyond the base, oldest first."""
        return tuple(record for record, _ in self._applied)

    def accept(self, record: AdaptationRecord, objective: float) -> bool:
        """Add an adaptation that has just been applied.

        1. The anchor and the window undo the oldest.
        2. If the drift or the objective is then beyond its bound, or not a number, everything is undone.

        Returns:
            Whether the state is still adapted; False if it is the base again.
        """
        self._applied.append((record, self._energy(record)))
        excess = max(int(self._bounds.anchor * len(self._applied)), len(self._applied) - self._bounds.window)
        for _ in range(excess):
            undo(self._state, self._applied[0][0])
            self._applied.popleft()
        if self.drift() <= self._bounds.max_drift and objective <= self._bounds.max_objective:
            return True
        self.reset()
        return False

    def drift(self) -> float:
        """Return the distance of the trained weights from the base: norm of the difference ÷ norm of the base weights.

        Computed from the scalars alone: independent ±1 directions are nearly orthogonal, so in each tensor the squared
        quanta add up. No weight is read and no base stored; for tensors of some thousand elements the error is below 1
        %.
        """
        if not self._applied:
            return 0.0
        energy = np.sum([energy for _, energy in self._applied], axis=0)
        sizes = np.array([t.weight.numel() * 4.0**t.grid_exponent for t in self._state.tensors])
        return math.sqrt(float(sizes @ energy)) / max(self._size, np.finfo(np.float64).tiny)

    def reset(self) -> None:
        """Undo every adaptation that is applied.

        Raises:
            ChecksumMismatch: this does not lead to the base, as something else has moved the weights.
        """
        while self._applied:
            undo(self._state, self._applied[-1][0])
            self._applied.pop()
        self._state.expect_checksum(self._base)

    def _energy(self, record: AdaptationRecord) -> NDArray[np.float64]:
        """Return the sum of squared quanta in each tensor."""
        quanta = self._state.units([update.coefficient for update in record.updates()]).astype(np.float64)
        total: NDArray[np.float64] = np.square(quanta).sum(axis=1)
        return total
