"""The accountant agrees with published figures and with the closed form, and never promises more than it may."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from zo_common.errors import ConfigError
from zo_common.privacy.accountant import ORDERS, Release, epsilon_spent, noise_for


def _closed_form(noise: float, rate: float, order: int) -> float:
    """Rényi divergence of the sampled Gaussian at an integer order: Mironov, Talwar and Zhang (2019), section 3.3."""
    terms = [
        math.log(math.comb(order, k))
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]
    top = max(terms)
    return (top + math.log(math.fsum(math.exp(t - top) for t in terms))) / (order - 1)


def _converted(divergences: dict[int, float], delta: float) -> float:
    """Canonne, Kamath and Steinke (2020), proposition 12."""
    return min(r + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a, r in divergences.items())


def _converted_as_of_old(divergences: dict[int, float], delta: float) -> float:
    """Mironov (2017), proposition 3."""
    return min(r - math.log(delta) / (a - 1) for a, r in divergences.items())


@pytest.mark.parametrize(
    ("examples", "batch", "noise", "epochs", "delta", "epsilon"),
    [(60_000, 150, 1.3, 15, 1e-5, 0.7242234026109595), (100_000, 100, 1.0, 30, 1e-7, 1.4154988495444845)],
)
def test_published_figures_of_dp_sgd(
    examples: int, batch: int, noise: float, epochs: int, delta: float, epsilon: float
) -> None:
    """As TensorFlow Privacy states them: privacy/analysis/compute_dp_sgd_privacy_test.py, Test0 (MNIST) and Test1."""
    steps = epochs * examples // batch

    assert epsilon_spent({Release(noise, batch, examples): steps}, delta) == pytest.approx(epsilon, rel=1e-9)


def test_the_figure_of_the_dp_sgd_tool() -> None:
    """`compute_dp_sgd_privacy --N=60000 --batch_size=256 --noise_multiplier=1.12 --epochs=60 --delta=1e-5`: 2.92.

    So its help says, of a release that converted as Mironov did; ours converts more tightly.
    """
    steps = math.ceil(60 * 60_000 / 256)
    divergences = {a: steps * _closed_form(1.12, 256 / 60_000, a) for a in ORDERS}

    assert _converted_as_of_old(divergences, 1e-5) == pytest.approx(2.92, abs=0.01)
    assert epsilon_spent({Release(1.12, 256, 60_000): steps}, 1e-5) < 2.92


@settings(max_examples=25, deadline=None)
@given(st.floats(0.6, 20.0), st.integers(1, 99), st.integers(1, 300), st.integers(0, 30), st.sampled_from([1e-9, 1e-5]))
def test_an_independent_computation(noise: float, batch: int, steps: int, whole: int, delta: float) -> None:
    """Sampled and unsampled answers together, by the closed form of integer orders and nothing of the library."""
    divergences = {a: steps * _closed_form(noise, batch / 100, a) + whole * a / (2 * (noise + 1) ** 2) for a in ORDERS}

    spent = epsilon_spent({Release(noise, batch, 100): steps, Release(noise + 1): whole}, delta)

    assert spent == pytest.approx(max(0.0, _converted(divergences, delta)), rel=1e-6, abs=1e-9)


def test_the_gaussian_itself_is_bounded_from_above() -> None:
    """The exact (ε, δ) of one Gaussian (Balle and Wang 2018) is a little less than what Rényi divergences promise."""
    spent = epsilon_spent({Release(2.0): 1}, 1e-6)

    exact = dp_accounting.pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(2.0)).get_epsilon(1e-6)
    assert exact < spent < 1.15 * exact


def test_the_closed_form_holds_for_discrete_noise() -> None:
    """The moments that the bound is made of, summed over the integers: σ and shift in units, any dimension alike."""
    sigma, shift, rate = 4, 3, 0.3
    x = np.arange(-400, 401)
    centred, shifted = (-((x - at) ** 2) / (2 * sigma**2) for at in (0, shift))  # logarithms
    centred, shifted = centred - logsumexp(centred), shifted - logsumexp(shifted)
    mixed = np.logaddexp(math.log1p(-rate) + centred, math.log(rate) + shifted)
    for order in (2, 3, 5, 8):
        forth = float(logsumexp(order * mixed + (1 - order) * centred)) / (order - 1)
        back = float(logsumexp(order * centred + (1 - order) * mixed)) / (order - 1)
        bound = _closed_form(sigma / shift, rate, order)
        assert forth == pytest.approx(bound, rel=1e-9)
        assert back <= bound


def test_every_order_is_an_integer() -> None:
    assert all(isinstance(order, int) and order >= 2 for order in ORDERS)
    assert rdp.RdpAccountant(ORDERS).orders.tolist() == list(ORDERS)


class TestNoise:
    @pytest.mark.parametrize("target", [(8.0, 1e-6), (2.0, 1e-6), (0.1, 1e-9)])
    @pytest.mark.parametrize("sample", [(16, 58), (1, 1), (16, 10)])
    def test_the_target_is_kept_and_nearly_reached(self, target: tuple[float, float], sample: tuple[int, int]) -> None:
        epsilon, delta = target

        noise = noise_for(epsilon, delta, 40, *sample)

        assert epsilon_spent({Release(noise, *sample): 40}, delta) <= epsilon
        assert epsilon_spent({Release(0.995 * noise, *sample): 40}, delta) > epsilon

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
    def test_an_impossible_epsilon(self, epsilon: float) -> None:
        with pytest.raises(ConfigError, match="target-epsilon is"):
            noise_for(epsilon, 1e-6, 10)

    def test_a_target_out_of_reach(self) -> None:
        with pytest.raises(ConfigError, match="no noise below"):
            noise_for(1e-7, 1e-6, 10**9)

    def test_no_answers(self) -> None:
        with pytest.raises(ConfigError, match="0 answers"):
            noise_for(8.0, 1e-6, 0)


def test_nothing_spent_is_nothing() -> None:
    assert epsilon_spent({}, 1e-6) == epsilon_spent({Release(1.0): 0}, 1e-6) == 0.0


def test_kinds_of_answers_as_plain_tuples() -> None:
    spent = {Release(1.3, 10, 20): 6, Release(2.0): 3}

    assert epsilon_spent({(1.3, 10, 20): 6, (2.0, 1, 1): 3}, 1e-6) == epsilon_spent(spent, 1e-6)
    with pytest.raises(ConfigError, match="without noise"):
        epsilon_spent({(0.0, 10, 20): 6}, 1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan])
def test_a_delta_that_is_none(delta: float) -> None:
    with pytest.raises(ConfigError, match="target-delta is"):
        epsilon_spent({Release(1.0): 1}, delta)


@pytest.mark.parametrize("fields", [(0.0, 1, 1), (math.nan, 1, 1), (1.0, 0, 1), (1.0, 1, 0)])
def test_a_release_that_cannot_be_accounted_for(fields: tuple[float, int, int]) -> None:
    with pytest.raises(ConfigError):
        Release(*fields)
