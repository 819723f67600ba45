"""Robust rules: hand-computed cases, the influence that hostile devices have, and what settings go together."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_common.aggregation.mean import ClientScalars, aggregate
from zo_common.aggregation.robust import (
    AGGREGATIONS,
    Aggregator,
    Krum,
    Median,
    MultiKrum,
    NormClipping,
    SignVote,
    TrimmedMean,
    aggregator_of,
    faults,
    krum_order,
    least_devices,
)
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, TooFewReplies

SHARED_RULES = [name for name in AGGREGATIONS if name not in ("mean", "norm-clipping")]
ROBUST = [name for name in AGGREGATIONS if name != "mean"]


def _client(client_id: int, values: Any, seed: int = 7) -> ClientScalars:
    return ClientScalars(client_id, seed, 1, np.atleast_2d(np.asarray(values, np.float32)))


def _clients(rows: Any) -> list[ClientScalars]:
    return [_client(number, row) for number, row in enumerate(rows)]


def _rule(name: Any, share: float = 0.25, **changes: Any) -> Aggregator:
    return aggregator_of(name, shared=True, weighting="uniform", byzantine_share=share, **changes)


def _combined(rule: Aggregator, clients: list[ClientScalars]) -> list[float]:
    """What the rule takes the scalars of the round to be."""
    (contribution,) = rule.aggregate(clients, -float(clients[0].projected_grads.shape[1]))
    assert (contribution.seed, contribution.client_id) == (7, 0)
    return contribution.coefficients.reshape(-1).tolist()


def test_median_by_hand() -> None:
    assert _combined(Median(0.25), _clients([[1, 9], [2, -5], [100, 0]])) == [2, 0]
    assert _combined(Median(0.25), _clients([[1, 9], [2, -5], [100, 0], [3, 1]])) == [2.5, 0.5]


def test_trimmed_mean_by_hand() -> None:
    rows = [[1, 0], [2, 0], [6, 8], [-1000, 4]]  # of four devices one at each end is cut
    assert _combined(TrimmedMean(0.25), _clients(rows)) == [1.5, 2]
    assert _combined(TrimmedMean(0.0), _clients([[1, 0], [2, 4]])) == [1.5, 2]


def test_krum_by_hand() -> None:
    """n = 5, f = 1: scores are sums of the two smallest squared distances: 1+4, 1+1, 1+4, 49+64, 97²+98²."""
    clients = _clients([[0], [1], [2], [9], [99]])
    assert _combined(Krum(0.2), clients) == [1]
    assert krum_order(np.array([[0.0], [1], [2], [9], [99]]), 1).tolist() == [1, 0, 2, 3, 4]
    assert _combined(MultiKrum(0.2), clients) == [3]


def test_krum_takes_the_lowest_id_of_equal_scores() -> None:
    clients = [_client(number, [value]) for number, value in ((9, 1), (4, -1), (6, 1), (2, -1))]
    (chosen,) = Krum(0.0).aggregate(clients, -1.0)
    assert chosen.coefficients.tolist() == [[-1]]


def test_sign_vote_by_hand() -> None:
    rows = [[5, -1, 1, 0], [1, -2, -1, 3], [-900, -3, 1, 0], [2, 7, -1, 0]]
    assert _combined(SignVote(0.25), _clients(rows)) == [1, -1, 0, 1]


def test_norm_clipping_by_hand() -> None:
    rows = [[3, 4], [6, 8], [300, -400]]  # norms 5, 10, 500
    at_median = _combined(_rule("norm-clipping"), _clients(rows))
    np.testing.assert_allclose(at_median, [(3 + 6 + 6) / 3, (4 + 8 - 8) / 3], rtol=1e-6)
    at_five = _combined(_rule("norm-clipping", norm_bound=5.0), _clients(rows))
    np.testing.assert_allclose(at_five, [(3 + 3 + 3) / 3, (4 + 4 - 4) / 3], rtol=1e-6)


def test_norm_clipping_bounds_each_device_along_directions_of_its_own() -> None:
    rule = aggregator_of("norm-clipping", shared=False, weighting="uniform", norm_bound=5.0)
    found = rule.aggregate([_client(2, [300, -400], seed=12), _client(1, [3, 4], seed=11)], 0.1)
    assert [(c.client_id, c.seed) for c in found] == [(1, 11), (2, 12)]
    np.testing.assert_allclose(found[0].coefficients, [[-0.075, -0.1]], rtol=1e-6)
    np.testing.assert_allclose(found[1].coefficients, [[-0.075, 0.1]], rtol=1e-6)


def test_the_mean_is_fedavg_as_before() -> None:
    clients = [ClientScalars(i, 7, 3 * i, np.float32([[i, -i]])) for i in (1, 2, 5)]
    for weighting, shared in itertools.product(("examples", "uniform"), (True, False)):
        rule = aggregator_of("mean", shared=shared, weighting=weighting)  # type: ignore[arg-type]
        assert rule.aggregate(clients, 0.3) == aggregate(clients, 0.3, weighting, shared)  # type: ignore[arg-type]


values = st.floats(-1e6, 1e6, width=32)
rounds = st.integers(5, 12).flatmap(
    lambda n: st.integers(1, 4).flatmap(
        lambda d: st.lists(st.lists(values, min_size=d, max_size=d), min_size=n, max_size=n)
    )
)


@pytest.mark.parametrize("name", ROBUST)
@given(rows=rounds, order=st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_arrival_does_not_matter(name: Any, rows: Any, order: Any) -> None:
    clients = _clients(rows)
    rule = _rule(name, 0.1)
    expected = rule.aggregate(clients, 0.1)
    order.shuffle(clients)
    assert rule.aggregate(clients, 0.1) == expected


@pytest.mark.parametrize("name", [name for name in ROBUST if name != "sign-vote"])
@given(row=st.lists(values, min_size=1, max_size=6), devices=st.integers(7, 12))
@settings(max_examples=50, deadline=None)
def test_devices_that_agree_are_taken_at_their_word(name: Any, row: Any, devices: int) -> None:
    found = _combined(_rule(name), _clients([row] * devices))
    np.testing.assert_allclose(found, np.float32(row), rtol=1e-6, atol=1e-30)


@st.composite
def attacked_rounds(draw: Any) -> tuple[Any, Any]:
    devices = draw(st.integers(7, 13))
    width = draw(st.integers(1, 4))
    hostile = draw(st.integers(0, faults(0.25, devices)))
    row = st.lists(values, min_size=width, max_size=width)
    return (
        draw(st.lists(row, min_size=devices - hostile, max_size=devices - hostile)),
        draw(st.lists(row, min_size=hostile, max_size=hostile)),
    )


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@given(attacked=attacked_rounds())
@settings(max_examples=100, deadline=None)
def test_f_devices_cannot_leave_the_honest_range_of_any_coordinate(name: Any, attacked: Any) -> None:
    honest, hostile = attacked
    found = np.float32(_combined(_rule(name), _clients([*honest, *hostile])))
    low, high = np.float32(honest).min(axis=0), np.float32(honest).max(axis=0)
    slack = 1e-6 * np.abs(np.float32(honest)).max(axis=0) + 1e-30
    assert (found >= low - slack).all() and (found <= high + slack).all()


@given(seed=st.integers(0, 2**32), devices=st.integers(7, 13), size=st.sampled_from([10.0, 1e3, 1e6]))
@settings(max_examples=100, deadline=None)
def test_krum_picks_an_honest_vector_where_the_hostile_ones_are_far(seed: int, devices: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    hostile = faults(0.25, devices)
    honest = rng.uniform(-1, 1, (devices - hostile, 4)).astype(np.float32)
    bad = (size * np.sign(rng.standard_normal((hostile, 4)))).astype(np.float32)  # two of them may agree
    found = np.float32(_combined(_rule("krum"), _clients([*honest, *bad])))
    assert found.tolist() in honest.tolist()
    many = np.float32(_combined(_rule("multi-krum"), _clients([*honest, *bad])))
    assert np.abs(many).max() <= 1


@given(attacked=attacked_rounds(), bound=st.floats(1e-3, 1e3))
@settings(max_examples=100, deadline=None)
def test_a_clipped_device_moves_the_result_by_at_most_the_bound(attacked: Any, bound: float) -> None:
    honest, hostile = attacked
    clients = _clients([*honest, *hostile])
    silent = _clients([*honest, *([0.0] * len(row) for row in hostile)])
    rule = _rule("norm-clipping", norm_bound=bound)
    moved = np.float64(_combined(rule, clients)) - np.float64(_combined(rule, silent))
    assert np.linalg.norm(moved) <= (1 + 1e-5) * len(hostile) * bound / len(clients) + 1e-9


def test_size_has_no_influence_on_a_vote() -> None:
    honest = [[1.0, -1.0]] * 6
    small, large = ([*honest, [-1.0, 1.0], [-1.0, 1.0]], [*honest, [-1e6, 1e6], [-1e6, 1e6]])
    assert _combined(SignVote(0.25), _clients(small)) == _combined(SignVote(0.25), _clients(large)) == [1, -1]


def test_one_device_more_than_stated_breaks_a_trimmed_mean_and_a_single_one_the_mean() -> None:
    honest = [[1.0]] * 6
    assert _combined(TrimmedMean(0.25), _clients([*honest, [1e6], [1e6]])) == [1]
    assert _combined(TrimmedMean(0.25), _clients([*honest[:5], [1e6], [1e6], [1e6]]))[0] > 1e5
    assert _combined(_rule("mean"), _clients([*honest, [1e6]]))[0] > 1e5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.3, 0.45, 0.49])
@pytest.mark.parametrize("extra", [1, 3])
def test_from_the_least_number_on_every_number_of_devices_is_enough(share: float, extra: int) -> None:
    least = least_devices(share, extra)
    assert all(n >= 2 * faults(share, n) + extra for n in range(least, 500))
    assert least == 1 or least - 1 < 2 * faults(share, least - 1) + extra


@pytest.mark.parametrize(("name", "least"), [("median", 3), ("trimmed-mean", 3), ("krum", 7), ("multi-krum", 7)])
def test_too_few_replies_are_refused(name: Any, least: int) -> None:
    rule = _rule(name)
    assert rule.least_replies == least
    rule.aggregate(_clients([[1.0]] * least), 0.1)
    with pytest.raises(TooFewReplies, match=rf"2 valid replies, {name} needs \d.*min-replies={least}"):
        rule.aggregate(_clients([[1.0]] * 2), 0.1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"aggregation": "krumm"}, "expected one of mean, median"),
        ({"aggregation": "median", "weighting": "examples"}, "weighting=uniform"),
        ({"aggregation": "median", "directions": "independent"}, "directions=shared.*norm-clipping"),
        ({"aggregation": "sign-vote", "local_steps": 2, "learning_rate": 1e-3}, "local-steps is 2, expected 1"),
        ({"aggregation": "krum", "min_replies": 6}, "set min-replies=7"),
        ({"aggregation": "median", "byzantine_share": 0.5}, "byzantine-share is 0.5, expected 0 … 0.49"),
        ({"aggregation": "norm-clipping", "norm_bound": -1.0}, "norm-bound is -1.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: Any, word: str) -> None:
    good = {"aggregation": "median", "directions": "shared", "weighting": "uniform", "min_replies": 7}
    RunConfig(**good)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=word):
        RunConfig(**good | changes)


def test_norm_clipping_goes_with_independent_directions() -> None:
    config = RunConfig(aggregation="norm-clipping", weighting="uniform", min_replies=3)
    assert isinstance(config.aggregator, NormClipping)
