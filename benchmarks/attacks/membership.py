"""Membership inference by an attacker who knows weights, directions, and the utterance with its transcript.

The attacker also knows how slopes are distributed over the population (mean and covariance along the round's
directions, of all other utterances of the pool), so a likelihood ratio of Gaussians is at hand (as LiRA, Carlini et al.
2022, but without shadow models: scalars are linear in the utterances). Batches of an ordinary step are drawn from a
seed that the server knows: it knows which *places* of the device's table are in it, and asks of each whether the
utterance stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks import compose
from benchmarks.attacks.evidence import Gaussian, log_mean_exp, mixture, summary
from benchmarks.attacks.settings import Settings
from zo_common.privacy.mechanism import Mechanism, noised_mean

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Evidence on T trials and R rounds.

    Attributes:
        step: (T, R): that the utterance is in a round's batch; NaN for members that are not in it.
        device: (T, R): that it is among the device's utterances, by all rounds so far.
    """

    step: Array
    device: Array


Attack = Callable[[int, bool], Scores]


def study(attack: Attack, settings: Settings, generator: np.random.Generator) -> dict[str, object]:
    """Return AUC of one step and by the number of rounds, over every utterance of the pool."""
    both = []
    for member in (True, False):
        found = [attack(column, member) for column in range(settings.pool)]
        both.append((np.stack([s.step for s in found]), np.stack([s.device for s in found])))
    (step_in, device_in), (step_out, device_out) = both
    flat = (settings.pool, -1)
    return {
        "step": summary(step_in.reshape(flat), step_out.reshape(flat), generator),
        "rounds": [
            summary(device_in[..., r], device_out[..., r], generator) for r in range(settings.rounds)
        ],
    }  # fmt: skip


@dataclass(frozen=True)
class Population:
    """Knowledge of an attacker about all utterances but one: moments of the slopes (d, columns) of one round."""

    own: Array
    mean: Array
    covariance: Array

    @classmethod
    def without(cls, rows: Array, column: int) -> Population:
        """Return the moments of all other columns."""
        others = np.delete(rows, column, axis=1)
        return cls(rows[:, column], others.mean(axis=1), np.cov(others, bias=True))


def sums_attack(
    rows: Array, settings: Settings, cohort: int, generator: np.random.Generator, noise: tuple[float, float] | None
) -> Attack:
    """Return the attack on the mean of a cohort's scalars; a cohort of one sends its own.

    Args:
        rows: (R, d, columns).
        noise: clip norm of a reply and noise multiplier of their sum under the device-level guarantee.
    """
    total, batch = cohort * settings.batch, settings.batch
    shape = (settings.trials, cohort, settings.utterances)
    extra = (noise[0] * noise[1] / cohort) ** 2 if noise else 0.0

    def attack(column: int, member: bool) -> Scores:
        crowd = compose.devices(generator, column, rows.shape[2], shape, member=member)
        weight = np.zeros((settings.trials, settings.utterances))
        scores = Scores(*(np.full((settings.trials, settings.rounds), np.nan) for _ in range(2)))
        trials = np.arange(settings.trials)
        for r in range(settings.rounds):
            chosen = compose.batches(generator, shape, batch)
            replies = compose.plain_scalars(rows[r], np.take_along_axis(crowd.slots, chosen, axis=2))
            seen = _noised(replies, *noise) if noise else replies.mean(axis=1)
            known = Population.without(rows[r], column)
            added = extra * np.eye(len(known.mean))
            inside = Gaussian.of(
                (known.own + (total - 1) * known.mean) / total, (total - 1) / total**2 * known.covariance + added
            )
            outside = Gaussian.of(known.mean, known.covariance / total + added)
            ratio = inside.log_density(seen) - outside.log_density(seen)
            within = np.zeros(weight.shape, bool)
            np.put_along_axis(within, chosen[:, 0], True, axis=1)
            weight += within * ratio[:, None]
            asked = within[trials, crowd.place] if member else np.ones(settings.trials, bool)
            scores.step[asked, r] = ratio[asked]
            scores.device[:, r] = log_mean_exp(weight, axis=1)
        return scores

    return attack


def _noised(replies: Array, clip_norm: float, noise_multiplier: float) -> Array:
    """Return the noisy mean of each trial's replies (T, m, q)."""
    return np.stack([noised_mean(list(r.astype(np.float32)), clip_norm, noise_multiplier) for r in replies])


def private_attack(
    rows: Array, settings: Settings, mechanism: Mechanism, generator: np.random.Generator, *, knows_rest: bool
) -> Attack:
    """Return the attack on the scalars of one device with the example-level guarantee.

    Args:
        rows: (R, q, columns).
        knows_rest: the attacker knows all other utterances of the device and which of them are in the sample, and has
            taken them off: what is left is this one, if it is there, and noise. Others then contribute nothing.
    """
    count, batch = settings.utterances, settings.batch
    rate = min(batch, count) / count
    bounded = np.stack([compose.clipped(mechanism, each) for each in rows])
    variance = (compose.noise_deviation(mechanism) / batch) ** 2

    def attack(column: int, member: bool) -> Scores:
        crowd = compose.devices(generator, column, rows.shape[2], (settings.trials, 1, count), member=member)
        scores = Scores(*(np.full((settings.trials, settings.rounds), np.nan) for _ in range(2)))
        sum_so_far = np.zeros(settings.trials)
        for r in range(settings.rounds):
            seen, asked = _releases(mechanism, rows[r], crowd, settings, member=member, alone=knows_rest)
            densities = _hypotheses(bounded[r], column, count, batch, variance, alone=knows_rest)
            inside, outside, without = (density.log_density(seen) for density in densities)
            scores.step[asked, r] = (inside - without)[asked]
            sum_so_far = sum_so_far + mixture(inside, outside, rate) - without
            scores.device[:, r] = sum_so_far
        return scores

    return attack


def _releases(
    mechanism: Mechanism, rows: Array, crowd: compose.Devices, settings: Settings, *, member: bool, alone: bool
) -> tuple[Array, NDArray[np.bool_]]:
    """Return released scalars (T, q), and on which trials the question about the step is asked."""
    seen, asked = [], []
    for slots, place in zip(crowd.slots[:, 0], crowd.place, strict=True):
        sample = None
        if alone:  # what remains once the others are taken off: this utterance, where it is drawn
            drawn = compose.draw(settings.batch, len(slots))
            sample = [int(place)] if member and place in drawn else []
        found, sample = compose.private_scalars(mechanism, rows, slots, settings.batch, sample)
        seen.append(found)
        asked.append(not member or place in sample)
    return np.stack(seen), np.array(asked)


def _hypotheses(
    bounded: Array, column: int, count: int, batch: int, variance: float, *, alone: bool
) -> tuple[Gaussian, Gaussian, Gaussian]:
    """Return scalars with the utterance in the sample, with it on the device and not in the sample, and without it."""
    known = Population.without(bounded, column)
    noise = variance * np.eye(len(known.mean))
    if alone:
        nothing = Gaussian.of(np.zeros(len(known.mean)), noise)
        return Gaussian.of(known.own / batch, noise), nothing, nothing
    rate = min(batch, count) / count
    square = known.covariance + np.outer(known.mean, known.mean)
    one = (rate * square - rate**2 * np.outer(known.mean, known.mean)) / batch**2
    rest = (count - 1) * rate * known.mean / batch
    return (
        Gaussian.of(known.own / batch + rest, (count - 1) * one + noise),
        Gaussian.of(rest, (count - 1) * one + noise),
        Gaussian.of(rest + rate * known.mean / batch, count * one + noise),
    )
