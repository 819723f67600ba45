"""Measurements of the loss check: losses of a few utterances at the weights and along random directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from zo_common.directions.seeds import fold_in
from zo_common.errors import NonFiniteLoss
from zo_common.estimator.step import LossFn, Walker
from zo_common.lattice.state import LatticeState
from zo_common.models.loss_comparison import Probe, Values

MOST_PASSES = 32
_STREAM = 1 << 42  # of the directions of the check, the same in every round


@dataclass(frozen=True)
class Setting:
    """Way to compute a loss; `tail_tokens` is None for the whole window, and where there is none.

    `held` is whether frozen weights are as the model holds them, instead of the base's in float32.
    """

    tail_tokens: int | None
    precision: str
    held: bool = False


REFERENCE = Setting(None, "reference")


class Trials(Protocol):
    """The losses of the same few utterances, n of them, in as many approximations as asked for.

    Attributes:
        tails: merged tails to be tried, the cheapest first; empty where the model has no window.
    """

    tails: tuple[int, ...]

    def loss(self, setting: Setting) -> LossFn:
        """Return losses (n,) as a step computes them; for `REFERENCE` in float32 on the full window, nothing cached."""


@dataclass
class _Sides:
    """Losses at w + εz and w − εz, each (n,), one entry for each direction measured so far."""

    up: list[Values] = field(default_factory=list)
    down: list[Values] = field(default_factory=list)


class Probes:
    """Losses measured so far; each is measured once, and directions are added one by one.

    Attributes:
        passes: forward passes over the utterances so far.
        limit: passes in all that `affords` allows.
    """

    def __init__(self, state: LatticeState, trials: Trials, seed: int) -> None:
        self._state, self._trials, self._seed = state, trials, seed
        self._losses: dict[Setting, LossFn] = {}
        self._bases: dict[Setting, Values] = {}
        self._sides: dict[tuple[Setting, float], _Sides] = {}
        self.passes, self.limit = 0, MOST_PASSES

    def affords(self, setting: Setting, epsilons: Sequence[float], directions: int, reserve: int = 0) -> bool:
        """Return whether the passes left suffice for probes at these εs, and `reserve` more."""
        setting = self._same(setting)
        missing = sum(directions - self.known(setting, e) for e in epsilons if self.known(setting, e) < directions)
        return self.passes + (setting not in self._bases) + 2 * missing + reserve <= self.limit

    def known(self, setting: Setting, epsilon: float) -> int:
        """Return the number of directions measured."""
        sides = self._sides.get((self._same(setting), epsilon))
        return len(sides.up) if sides else 0

    def base(self, setting: Setting) -> Values:
        """Return the losses at the weights, (n,).

        Raises:
            NonFiniteLoss: those of the reference are not finite.
        """
        setting = self._same(setting)
        if setting not in self._bases:
            self._losses[setting] = self._trials.loss(setting)
            self._bases[setting] = self._pass(setting)
        return self._bases[setting]

    def probe(self, setting: Setting, epsilon: float, directions: int) -> Probe:
        """Return the losses along the first few directions.

        Raises:
            NonFiniteLoss: as `base`.
            LatticeOverflow: ε leads beyond the lattice.
        """
        setting = self._same(setting)
        base, sides = self.base(setting), self._sides.setdefault((setting, epsilon), _Sides())
        walker = Walker(self._state, epsilon)
        try:
            for j in range(len(sides.up), directions):
                seed = fold_in(self._seed, _STREAM, j)
                walker.move((seed, 1))
                up = self._pass(setting)
                walker.move((seed, -1))
                sides.down.append(self._pass(setting))
                sides.up.append(up)
        finally:
            walker.move(None)
        plus, minus = np.stack(sides.up[:directions]), np.stack(sides.down[:directions])
        return Probe(base, (plus - minus) / 2, (plus + minus) / 2 - base)

    def _same(self, setting: Setting) -> Setting:
        if not self._trials.tails and setting.precision == "float32" and not setting.held:
            return REFERENCE  # without a window and a cache they are the same
        return setting

    def _pass(self, setting: Setting) -> Values:
        self.passes += 1
        values: Values = self._losses[setting]().detach().cpu().double().numpy().reshape(-1)
        if setting == REFERENCE and not np.isfinite(values).all():
            raise NonFiniteLoss("the loss of the base model is not finite: check the recordings and their transcripts")
        return values
