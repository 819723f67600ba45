"""The noise has exactly the distribution it claims, and nobody can replay it."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from zo_common.errors import ConfigError
from zo_common.privacy.discrete_gaussian import bernoulli_exp, discrete_gaussian, discrete_gaussians, poisson_subset

RARE = 1e-6  # a right sampler fails a test this rarely: there is no seed to fix


def _pmf(sigma: int) -> dict[int, float]:
    """P(x) ∝ exp(−x²/2σ²), summed as far as float64 sees."""
    reach = 40 * sigma
    weights = {x: math.exp(-x * x / (2 * sigma * sigma)) for x in range(-reach, reach + 1)}
    total = math.fsum(weights.values())
    return {x: w / total for x, w in weights.items()}


@pytest.mark.parametrize("sigma", [1, 2, 7])
def test_samples_have_the_exact_probabilities(sigma: int) -> None:
    count = 20_000
    found = Counter(discrete_gaussians(count, sigma))
    pmf = _pmf(sigma)
    bins = [x for x, p in pmf.items() if p * count >= 10]

    observed = [found[x] for x in bins]
    expected = [pmf[x] * count for x in bins]
    observed.append(count - sum(observed))
    expected.append(count - sum(expected))

    assert stats.chisquare(observed, expected).pvalue > RARE


def test_at_a_large_sigma_it_is_a_gaussian() -> None:
    sigma = 3 << 20
    samples = np.array(discrete_gaussians(5_000, sigma), np.float64)

    assert stats.kstest(samples / sigma, "norm").pvalue > RARE
    low_bits = Counter(int(x) % 16 for x in samples)  # no holes in the low bits
    assert stats.chisquare([low_bits[b] for b in range(16)]).pvalue > RARE


def test_samples_are_independent() -> None:
    samples = np.array(discrete_gaussians(10_000, 1 << 20), np.float64)

    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 5 / math.sqrt(len(samples))


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 3), (1, 1), (7, 3), (4, 1)])
def test_bernoulli_exp(numerator: int, denominator: int) -> None:
    count = 20_000
    hits = sum(bernoulli_exp(numerator, denominator) for _ in range(count))

    assert stats.binomtest(hits, count, math.exp(-numerator / denominator)).pvalue > RARE


def test_no_seed_replays_the_noise() -> None:
    drawn = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        drawn.append((discrete_gaussians(8, 1 << 20), poisson_subset(200, 1, 2)))

    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def test_no_noise_and_negative_noise() -> None:
    assert discrete_gaussian(0) == 0
    with pytest.raises(ConfigError, match="sigma is -1"):
        discrete_gaussian(-1)


class TestPoissonSubset:
    def test_the_size_is_binomial(self) -> None:
        sizes = np.array([len(poisson_subset(30, 1, 3)) for _ in range(3_000)])

        expected = stats.binom(30, 1 / 3).pmf(np.arange(31)) * len(sizes)
        kept = expected >= 10
        observed = np.bincount(sizes, minlength=31)
        table = [*observed[kept], observed[~kept].sum()], [*expected[kept], expected[~kept].sum()]
        assert stats.chisquare(*table).pvalue > RARE

    def test_all_are_equally_likely_and_none_or_all_at_the_ends(self) -> None:
        hits = Counter(i for _ in range(3_000) for i in poisson_subset(10, 1, 4))

        assert stats.chisquare([hits[i] for i in range(10)]).pvalue > RARE
        assert poisson_subset(5, 0, 7) == []
        assert poisson_subset(5, 7, 7) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("rate", [(3, 2), (-1, 2), (0, 0)])
    def test_what_is_no_probability_is_refused(self, rate: tuple[int, int]) -> None:
        with pytest.raises(ConfigError, match="no probability"):
            poisson_subset(5, *rate)
