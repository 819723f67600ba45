"""Transcript inference: candidate sentences are ranked by how well they explain the scalars of a device.

Two attackers, both of whom know weights, directions, the candidate sentences, and how slopes are distributed:

- *recording*: has the recording that the device trained on, and not its transcript;
- *voice*: has no recording of the device, but each candidate read by another voice, as a synthesiser reads it.

The device has n utterances, all of which take part in every step, so that more rounds tell more about the same ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.attacks import compose
from benchmarks.attacks.evidence import Gaussian
from benchmarks.attacks.membership import Population
from benchmarks.attacks.settings import Settings
from benchmarks.attacks.slopes import Table
from zo_common.privacy.mechanism import Mechanism

Array = NDArray[np.float64]
_LEAST_VARIANCE = 1e-6  # of an utterance's: what rounding leaves where nothing else is unknown


def guess(
    table: Table, settings: Settings, size: int, mechanism: Mechanism | None, generator: np.random.Generator
) -> dict[str, dict[str, dict[str, float]]]:
    """Return ranks by attacker after one round and after all; `mechanism` is the guarantee, or None."""
    ranks: dict[str, list[Array]] = {"recording": [], "voice": []}
    for target in range(settings.candidates):
        crowd = compose.devices(generator, target, settings.pool, (settings.draws, 1, size), member=True)
        for slots in crowd.slots[:, 0]:
            seen = _sent(table, slots, mechanism)
            if target < settings.targets:
                ranks["recording"].append(ranks_of(_recording(table, target, seen, size, mechanism), target))
            ranks["voice"].append(ranks_of(_voice(table, seen), target))
    last = settings.rounds - 1
    return {
        name: {"first": figures(np.stack(found)[:, 0]), "all": figures(np.stack(found)[:, last])}
        for name, found in ranks.items()
    }


def figures(ranks: Array) -> dict[str, float]:
    """Return mean rank, share of first places, and mean reciprocal rank."""
    return {
        "mean_rank": float(ranks.mean()),
        "top_1": float((ranks < 2).mean()),
        "reciprocal": float((1 / ranks).mean()),
    }


def chance(candidates: int) -> dict[str, float]:
    """Return the same figures of who guesses."""
    places = np.arange(1, candidates + 1)
    return {
        "mean_rank": float(places.mean()),
        "top_1": 1 / candidates,
        "reciprocal": float((1 / places).mean()),
    }


def ranks_of(scores: Array, target: int) -> Array:
    """Return the place of the target after each round, 1 the first, from scores (R, candidates); ties share a place."""
    own = scores[:, target][:, None]
    ranks: Array = 0.5 + (scores > own).sum(axis=1) + 0.5 * (scores == own).sum(axis=1)
    return ranks


def _sent(table: Table, slots: compose.Indices, mechanism: Mechanism | None) -> Array:
    """Return what the device sends, (R, q + 1), without the loss under a guarantee (R, q)."""
    if mechanism is None:
        return np.stack([compose.plain_scalars(rows, slots) for rows in table.pool])
    return np.stack([compose.private_scalars(mechanism, r[:-1], slots, len(slots))[0] for r in table.pool])


def _recording(table: Table, target: int, seen: Array, size: int, mechanism: Mechanism | None) -> Array:
    """Return log-likelihoods by all rounds so far, (R, candidates)."""
    scores = []
    for rows, guesses, found in zip(table.pool, table.guesses[:, :, target], seen, strict=True):
        if mechanism is None:
            known, guessed, noise = Population.without(rows, target), guesses, 0.0
        else:
            known = Population.without(compose.clipped(mechanism, rows[:-1]), target)
            guessed = compose.clipped(mechanism, guesses[:-1])
            noise = (compose.noise_deviation(mechanism) / size) ** 2
        share = max((size - 1) / size**2, _LEAST_VARIANCE)
        spread = Gaussian.of(known.mean, share * known.covariance + noise * np.eye(len(known.mean)))
        means = (guessed.T + (size - 1) * known.mean) / size
        scores.append(spread.log_density(found[None], means))
    return np.cumsum(scores, axis=0)


def _voice(table: Table, seen: Array) -> Array:
    """Return cosine of the device's scalars and each echo's, less those of the population, by all rounds so far."""
    queries = table.pool.shape[1] - 1  # the other voice's loss says little about this one's
    mean = table.pool[:, :queries].mean(axis=2)
    own = (seen[:, :queries] - mean)[:, :, None]
    theirs = table.echoes[:, :queries] - mean[:, :, None]
    product, ours, square = (np.cumsum(x.sum(axis=1), axis=0) for x in (own * theirs, own**2, theirs**2))
    scores: Array = product / np.sqrt(ours * square)
    return scores
