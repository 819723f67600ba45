"""Evidence for the attacks: Gaussian likelihoods of scalars, and how well a score separates members from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_NULL = 1e-9  # of the largest eigenvalue: leave-one-out scalars add up to zero, which says nothing
RESAMPLES = 200


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of vectors (d,), of full rank or not."""

    mean: Array
    _whiten: Array
    _log_scale: float

    @classmethod
    def of(cls, mean: Array, covariance: Array) -> Gaussian:
        """Return the distribution of samples; directions without variance are left out.

        Units are evened out first: a loss and a scalar differ by orders of magnitude.
        """
        scale = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        large = values > _NULL * values.max()
        root = np.sqrt(values[large])
        whiten = vectors[:, large] / root / scale[:, None]
        return cls(mean, whiten, float(np.log(root).sum() + np.log(scale).sum()))

    def log_density(self, values: Array, mean: Array | None = None) -> Array:
        """Return the log-density up to a constant of the dimension: (…, d) → (…)."""
        centred = (values - (self.mean if mean is None else mean)) @ self._whiten
        result: Array = -0.5 * (centred**2).sum(axis=-1) - self._log_scale
        return result


def log_mean_exp(values: Array, axis: int) -> Array:
    """Return log of the mean of exp."""
    peak = values.max(axis=axis, keepdims=True)
    result: Array = np.log(np.exp(values - peak).mean(axis=axis)) + peak.squeeze(axis)
    return result


def mixture(inside: Array, outside: Array, rate: float) -> Array:
    """Return log(rate · exp(inside) + (1 − rate) · exp(outside))."""
    if rate >= 1:
        return inside
    result: Array = np.logaddexp(np.log(rate) + inside, np.log1p(-rate) + outside)
    return result


def auc(members: Array, others: Array) -> float:
    """Return probability that a member scores higher than another, ties counting half (Mann and Whitney)."""
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, members, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(others)))


def found_at(members: Array, others: Array, false_alarms: float) -> float:
    """Return share of the members above the score that a share of `false_alarms` of the others exceeds."""
    return float((members > np.quantile(others, 1 - false_alarms)).mean())


def interval(
    members: Array, others: Array, generator: np.random.Generator, score: Callable[[Array, Array], float] = auc
) -> tuple[float, float]:
    """Return 95 % interval of a score by bootstrap over utterances, whose trials are not independent.

    Args:
        members, others: (utterances, trials).
    """
    count = len(members)
    scores = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(count, size=count)
        scores.append(score(_flat(members[chosen]), _flat(others[chosen])))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _flat(values: Array) -> Array:
    """Return the scores without the trials that do not count, which are NaN."""
    flat = values.reshape(-1)
    return flat[~np.isnan(flat)]


def summary(members: Array, others: Array, generator: np.random.Generator) -> dict[str, float]:
    """Return AUC with its interval, and members found at 1 % false alarms; both are (utterances, trials)."""
    low, high = interval(members, others, generator)
    flat = _flat(members), _flat(others)
    return {"auc": auc(*flat), "low": low, "high": high, "found_at_1_percent": found_at(*flat, 0.01)}
