"""A check of the loss approximations against the full-window float32 loss, on a few of the device's own utterances.

A merged tail, a cached prefix, shorter floats and the perturbation ε are approximations, each of which suits some
models and speech and not others. So each is compared with the exact loss, at the base weights:

- the *loss* of every utterance, and
- the *differences* (L(w+εz) − L(w−εz)) / 2 along a few directions z, which a step measures; of frozen weights in
  another precision their angle alone (`compare_held`).

Directions are added one at a time: one suffices where all errors are less than 1/`CLEAR` of their tolerances, or one is
more than `CLEAR` times its own. For normal errors of twice the tolerance, on two utterances, 11.5 % pass; 10.4 % would
pass two directions. Losses that are wrong at the weights themselves are refused without directions.

The cheapest setting within tolerance is used. A setting that the user fixed is not replaced: if it is outside the
tolerance, `LossCheckFailed` says by how much, and names one that fits.

The tolerances were calibrated on real models. On Whisper-tiny.en a tail of 64 that is merged before the first layer is
off by 5 % in loss and 27 % in its gradient, and costs a third of the words that training wins; `whisper_forward`'s of
32 is off by 0.7 % and 4 %. On Whisper-base with Russian speech, attention sinks in a merged tail add 2 … 9 nats on
every fourth utterance and leave the others as they were: hence a bound for the worst utterance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from zo_common.errors import LossCheckFailed
from zo_common.estimator.rounding_noise import FRACTION, noise_between
from zo_common.lattice import grid as lattice
from zo_common.lattice.state import LatticeState
from zo_common.models.loss_comparison import (
    Comparison,
    EpsilonVerdict,
    Tolerances,
    compare,
    compare_held,
    compare_losses,
    root_mean_square,
)
from zo_common.models.loss_probes import MOST_PASSES, REFERENCE, Probes, Setting, Trials

TAILS = (32, 64, 128, 256)
DIRECTIONS = 2  # at most
HELD_DIRECTIONS = 6  # at most: an angle needs more of them, and two at least
CLEAR = 3
FEWEST_UTTERANCES, MOST_UTTERANCES = 2, 6
FIRST_EPSILON, LARGEST_EPSILON = 2.0**-10, 2.0**-4
_EPSILONS_TRIED = 4
_MOST_STEPS = 4  # by which ε is doubled for a shorter type
_PROBE = 1 + 2 * DIRECTIONS  # passes


@dataclass(frozen=True)
class Asked:
    """Settings fixed by the user; None is chosen here. `fast` is the shorter precision worth trying, if there is one.

    `frozen` is the precision in which the model holds its frozen weights, `frozen_fixed` whether the user fixed it.
    """

    tail_tokens: int | None = None
    precision: str | None = None
    epsilon: float | None = None
    fast: str = "float32"
    frozen: str = "float32"
    frozen_fixed: bool = False


@dataclass(frozen=True)
class LossChoice:
    """Choice of a device's way to compute its loss, with the reasons.

    Attributes:
        tail_tokens: None for the whole window.
        reasons: a clause for each choice; empty where nothing was checked.
        frozen: the precision of frozen weights.
    """

    tail_tokens: int | None
    precision: str
    epsilon: float
    reasons: tuple[str, ...] = ()
    frozen: str = "float32"

    @property
    def sentence(self) -> str:
        """All of it in words."""
        return "loss check: " + "; ".join(self.reasons) if self.reasons else ""


def utterances_for(round_forwards: int) -> int:
    """Return the utterances to check, so that the check costs no more forward passes of an utterance than a round.

    Of each there are at most `MOST_PASSES`; a check of fewer than `FEWEST_UTTERANCES` would say nothing, so rounds of
    less than 64 forward passes cost less than their check.

    Args:
        round_forwards: forward passes of one utterance that one device makes in a round: passes × batch size.
    """
    return min(MOST_UTTERANCES, max(FEWEST_UTTERANCES, round_forwards // MOST_PASSES))


def check_loss(
    state: LatticeState, trials: Trials, asked: Asked, tolerances: Tolerances | None = None, seed: int = 0
) -> LossChoice:
    """Choose how the loss is computed; the weights are afterwards as before.

    1. ε, on the cheapest tail: `FIRST_EPSILON`, raised while rounding noise is more than a tenth of the differences,
       lowered while the curvature term is more than a tenth of the loss.
    2. The reference at that ε; where its curvature is too large, ε is lowered again.
    3. The first tail that fits; else the whole window, which has to: it checks the cached prefix alone.
    4. The shorter precision, if it fits at the largest ε that curvature leaves room for. Where frozen weights are held
       in another one than float32, they are tried with the shorter precision for the rest, and with float32.

    At most `MOST_PASSES` passes over the utterances, twice as many to name what fits where a fixed setting does not.
    What they do not reach to try is passed over for what is safe: the whole window, float32.

    Raises:
        LossCheckFailed: a fixed setting does not fit; or the whole window as a step computes it does not.
        NonFiniteLoss: the reference is not finite.
        LatticeOverflow: a fixed ε leads beyond the lattice.
    """
    return _Check(state, trials, asked, tolerances or Tolerances(), seed).choose()


class _Check:
    def __init__(self, state: LatticeState, trials: Trials, asked: Asked, tolerances: Tolerances, seed: int) -> None:
        self._state, self._trials, self._asked, self._limits = state, trials, asked, tolerances
        self._probes = Probes(state, trials, seed)
        self._least = max(lattice.least_epsilon(t.scale_exponent, t.grid_exponent) for t in state.tensors)
        self._problems: list[str] = []

    @torch.inference_mode()
    def choose(self) -> LossChoice:
        tails: list[int | None] = [*self._trials.tails, None]
        if tails[0] is not None and self._asked.tail_tokens is not None:
            tails = [self._asked.tail_tokens, *(t for t in tails if t is None or t > self._asked.tail_tokens)]
        self._cheapest = cheapest = Setting(tails[0], "float32")
        epsilon = self._search(cheapest, self._asked.epsilon or FIRST_EPSILON, reserve=3 * _PROBE)
        epsilon = self._lower_for_reference(epsilon)
        tail, reasons = self._tail(tails, epsilon, self._verdict(cheapest, epsilon).noise)
        exact = Setting(tail, "float32")
        epsilon = self._settle(exact, epsilon)
        held = self._held(exact, epsilon) if self._asked.frozen != "float32" else None
        precision, epsilon, why = held or self._precision(exact, epsilon)
        if self._problems:
            raise LossCheckFailed("; ".join(self._problems))
        frozen = self._asked.frozen if held else "float32"
        return LossChoice(tail, precision, epsilon, (*reasons, *why), frozen)

    # -- ε

    def _search(self, setting: Setting, start: float, reserve: int = 0) -> float:
        """From `start` on, the first ε that fits, or the one that comes nearest to it."""
        tried: dict[float, float] = {}
        epsilon = min(max(start, self._least), LARGEST_EPSILON)
        while epsilon not in tried and len(tried) < _EPSILONS_TRIED:
            if tried and not self._affords(setting, (epsilon, epsilon / FRACTION), reserve):
                break
            verdict = self._verdict(setting, epsilon)
            tried[epsilon] = verdict.excess(self._limits)
            if tried[epsilon] <= 1:
                break
            if self._asked.epsilon is not None:
                self._probes.limit = 2 * MOST_PASSES
            epsilon = min(max(self._next(epsilon, verdict), self._lowest), LARGEST_EPSILON)
        return min(tried, key=lambda e: tried[e])

    def _next(self, epsilon: float, verdict: EpsilonVerdict) -> float:
        """Return a power of two: curvature falls with the square of ε, the noise's share with its inverse or slower."""
        if verdict.curvature > self._limits.curvature:
            excess = min(verdict.curvature / self._limits.curvature, 2.0**12)
            return float(2.0 ** (math.floor(math.log2(epsilon)) - math.ceil(math.log2(excess) / 2)))
        excess = min(verdict.noise / self._limits.noise, 2.0**4)
        return float(2.0 ** (math.ceil(math.log2(epsilon)) + max(1, math.ceil(math.log2(excess)))))

    @property
    def _lowest(self) -> float:
        """The least ε that can be divided to look for noise, a power of two."""
        return float(2.0 ** math.ceil(math.log2(self._least * FRACTION)))

    def _lower_for_reference(self, epsilon: float) -> float:
        """Return a first ε that was found on a loss that may be wrong: lower where the reference is curved more."""
        curvature = self._curvature(REFERENCE, epsilon)
        if self._asked.epsilon is not None or curvature <= self._limits.curvature:
            return epsilon
        lower = max(self._next(epsilon, EpsilonVerdict(0.0, curvature)), self._lowest)
        return lower if self._affords(REFERENCE, (lower,), 4 * _PROBE) else epsilon

    def _settle(self, exact: Setting, epsilon: float) -> float:
        """Return the ε that fits the chosen tail; a fixed one that does not is a problem that names it."""
        wanted = self._asked.epsilon
        at = epsilon if wanted is None else wanted
        if wanted is None and not self._affords(exact, (at, at / FRACTION), _PROBE):
            return at  # it fitted a cheaper tail
        verdict = self._verdict(exact, at) if at >= self._least else EpsilonVerdict(1.0, 0.0)
        if verdict.excess(self._limits) <= 1:
            return at
        found = self._search(exact, epsilon)
        if wanted is not None:
            fits = self._verdict(exact, found).excess(self._limits) <= 1
            self._problems.append(
                f"epsilon is {wanted:g}, with which {verdict} on this device's recordings, expected "
                f"{1 / self._limits.noise:.0f} times or more and {self._limits.curvature:.0%} or less: "
                + (f"set epsilon={found:.3g}, which fits, or auto" if fits else "no epsilon fits, check the data")
            )
        return found

    def _verdict(self, setting: Setting, epsilon: float) -> EpsilonVerdict:
        divisible = int(self._state.epsilon_units(epsilon).min()) >= FRACTION
        large = epsilon if divisible else FRACTION * epsilon
        for directions in range(1, DIRECTIONS + 1):
            sizes = (epsilon, large, large / FRACTION)
            probe, above, below = (self._probes.probe(setting, size, directions) for size in sizes)
            noise, size = noise_between(above.differences, below.differences), root_mean_square(probe.differences)
            verdict = EpsilonVerdict(min(1.0, noise / size) if size else 1.0, probe.curvature)
            if verdict.excess(self._limits) * CLEAR <= 1:
                break
        return verdict

    def _curvature(self, setting: Setting, epsilon: float) -> float:
        """Return the curvature term along the directions measured, at least one."""
        return self._probes.probe(setting, epsilon, max(1, self._probes.known(setting, epsilon))).curvature

    def _compared(self, setting: Setting, exact: Setting, epsilon: float, limits: Tolerances) -> Comparison:
        """Compare along as many directions as the errors need; none where losses at the weights are wrong."""
        probes = self._probes
        found = compare_losses(probes.base(setting), probes.base(exact))
        if not found.fits(limits):
            return found
        judge, first, most = (compare_held, 2, HELD_DIRECTIONS) if setting.held else (compare, 1, DIRECTIONS)
        for directions in range(first, most + 1):
            if directions > DIRECTIONS and not probes.affords(setting, (epsilon,), directions, reserve=2):
                break
            found = judge(probes.probe(setting, epsilon, directions), probes.probe(exact, epsilon, directions))
            if found.fits(limits.times(1 / CLEAR)) or not found.fits(limits.times(CLEAR)):
                break
        return found

    # -- tail and precision

    def _tail(self, tails: Sequence[int | None], epsilon: float, noise: float) -> tuple[int | None, list[str]]:
        """Return the first tail that fits. Of differences that drown in `noise`, no more is asked than that."""
        if tails[0] is None:
            return None, []
        limits = replace(self._limits, difference=max(self._limits.difference, 4 * noise) if noise < 0.5 else math.inf)
        refused, first = "", ""
        reserve = _PROBE if self._asked.precision or self._asked.fast == "float32" else 2 * _PROBE
        for tail in tails:
            setting = Setting(tail, "float32")
            needed = reserve + self._missing(REFERENCE, epsilon)
            if tail is not None and refused and not self._affords(setting, (epsilon,), needed):
                continue
            found = self._compared(setting, REFERENCE, epsilon, limits)
            message = found.words("the full window's in float32")
            message = f"{'the whole window' if tail is None else f'tail-tokens {tail}'}: {message}"
            if not found.fits(limits):
                self._probes.limit = 2 * MOST_PASSES if tail == self._asked.tail_tokens else self._probes.limit
                refused = message
                first = first or refused
                continue
            if self._asked.tail_tokens not in (None, tail):
                fits = "auto, which takes the whole window" if tail is None else f"{tail}, which fits, or auto"
                self._problems.append(f"{first}, expected {self._expected}: set tail-tokens={fits}")
            return tail, [message + (f" (not {refused})" if refused else "")]
        raise LossCheckFailed(
            f"the loss of a step is not the model's where nothing is merged ({refused}), expected {self._expected}: "
            "its cached encoder states or layers are not what they are taken for, use a model of an unchanged class"
        )

    def _precision(self, exact: Setting, epsilon: float) -> tuple[str, float, list[str]]:
        """Return the shorter type where it fits, at a larger ε if that helps; its additions to `exact` are compared."""
        wanted = self._asked.precision or self._asked.fast
        if wanted == "float32":
            return wanted, epsilon, ["float32", self._why(exact, epsilon)]
        if self._asked.precision is not None:
            self._probes.limit = 2 * MOST_PASSES
        at, message, difference = self._fitting(Setting(exact.tail_tokens, wanted), exact, epsilon)
        if at is not None:
            return wanted, at, [f"{wanted}: {message}", self._why(exact, at, difference)]
        if self._asked.precision is not None:
            self._problems.append(
                f"precision is {wanted!r}, {message}, expected {self._expected_of_types}: set precision=float32, which "
                "fits, or auto"
            )
        return "float32", epsilon, [f"float32 (not {wanted}: {message or 'not tried'})", self._why(exact, epsilon)]

    def _held(self, exact: Setting, epsilon: float) -> tuple[str, float, list[str]] | None:
        """Frozen weights as they are held, if they fit, and the precision of the rest; None if they do not."""
        asked, words = self._asked, []
        if asked.frozen_fixed:
            self._probes.limit = 2 * MOST_PASSES
        for precision in dict.fromkeys([asked.precision] if asked.precision else [asked.fast, "float32"]):
            at, message, _ = self._fitting(Setting(exact.tail_tokens, precision, held=True), exact, epsilon)
            if at is not None:
                reason = f"frozen weights in {asked.frozen}, the rest in {precision}: {message}"
                curvature = f"curvature is {self._curvature(exact, at):.1%} of the loss"
                return precision, at, [reason, f"epsilon {at:.3g}: {curvature}"]
            words.append(f"{message or 'not tried'} with {precision} for the rest")
        if asked.frozen_fixed:
            self._problems.append(
                f"frozen-precision is {asked.frozen!r}, {' and '.join(words)}, expected {self._expected_of_held}: set "
                "frozen-precision=float32, which fits, or auto"
            )
        return None

    def _fitting(self, setting: Setting, exact: Setting, epsilon: float) -> tuple[float | None, str, float]:
        """Return the ε at which a setting fits or None, its errors in words, and the error of the differences."""
        at, message = self._largest(exact, epsilon), ""
        limits = self._limits.of_held if setting.held else self._limits.of_types
        while self._affords(setting, (at,), self._missing(exact, at)):
            found, curvature = self._compared(setting, exact, at, limits), self._curvature(exact, at)
            message = message or found.words("float32's")
            if found.fits(limits) and (curvature <= self._limits.curvature or at == epsilon):
                return at, message, found.difference or 0.0
            if curvature <= self._limits.curvature or at <= epsilon:
                break
            at, message = at / 2, ""
        return None, message, 0.0

    @property
    def _expected_of_held(self) -> str:
        return f"{self._limits.of_held.loss:.0%} and a cosine of {math.sqrt(1 - self._limits.turn**2):.2f} or more"

    @property
    def _expected_of_types(self) -> str:
        return f"{self._limits.of_types.loss:.0%} and {self._limits.of_types.difference:.0%}"

    def _largest(self, setting: Setting, epsilon: float) -> float:
        """Return the largest ε for which curvature, growing with its square, leaves room: best for a shorter type."""
        if self._asked.epsilon is not None:
            return epsilon
        room = math.sqrt(self._limits.curvature / max(self._curvature(setting, epsilon), 1e-9))
        steps = min(math.floor(math.log2(max(room, 1.0))), math.floor(math.log2(LARGEST_EPSILON / epsilon)))
        return float(epsilon * 2.0 ** max(0, min(steps, _MOST_STEPS)))

    def _why(self, setting: Setting, epsilon: float, noise: float | None = None) -> str:
        """Return the reason for ε; `noise` is that of a shorter type."""
        if noise is None:
            known = setting if self._affords(setting, (epsilon, epsilon / FRACTION)) else self._cheapest
            return f"epsilon {epsilon:.3g}: {self._verdict(known, epsilon)}"
        return f"epsilon {epsilon:.3g}: {EpsilonVerdict(noise, self._curvature(setting, epsilon))}"

    @property
    def _expected(self) -> str:
        return f"{self._limits.loss:.0%} ({self._limits.worst:.0%} for one utterance) and {self._limits.difference:.0%}"

    def _missing(self, setting: Setting, epsilon: float) -> int:
        """Return the passes that a second direction of a setting may still need."""
        return 2 * max(0, DIRECTIONS - self._probes.known(setting, epsilon))

    def _affords(self, setting: Setting, epsilons: Sequence[float], reserve: int = 0) -> bool:
        return self._probes.affords(setting, epsilons, DIRECTIONS, reserve)
