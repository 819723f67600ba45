"""Attack: one device claims a hundred million utterances, or one, and decides over everyone's round or noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_cohort import Cohort, terms_of, vectors_of
from toy_fleet import TOY, Utterances, toy_grids

from client.device import requests as device
from server.devices.roster import Member
from server.guards.privacy_guard import settle_noise
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.secure_sum.quantiser import Quantiser
from zo_common.secure_sum.weights import capped

CLAIM = 100_000_000
PRIVATE: dict[str, Any] = {
    "privacy": "example",
    "target_epsilon": 8.0,
    "target_delta": 1e-5,
    "batch_size": 8,
    "num_server_rounds": 20,
}


def _members(*counts: int) -> list[Member]:
    return [Member(100 + n, n, count, {}) for n, count in enumerate(counts)]


def _noise(tmp_path: Path, *counts: int) -> float:
    config = RunConfig(model="toy", data="none", output=str(tmp_path), **PRIVATE)
    return settle_noise(config, _members(*counts), tmp_path / "none").noise_multiplier


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, CLAIM), min_size=3, max_size=40), st.integers(3, 40))
def test_no_claim_makes_a_sum_impossible(claims: list[int], least: int) -> None:
    """Whoever drops out: no device is over half of a sum of the fewest devices, and no sum overflows."""
    least = min(least, len(claims))
    found = capped(dict(enumerate(claims)), least, Quantiser().most_weight)
    lightest = sorted(found.values())[: least - 1]
    assert max(found.values()) <= sum(lightest) and sum(found.values()) <= Quantiser().most_weight
    assert all(1 <= found[n] <= claim for n, claim in enumerate(claims))


def test_honest_weights_stay_as_they_are() -> None:
    assert capped({0: 9, 1: 12, 2: 10, 3: 8}, 3, 1 << 25) == {0: 9, 1: 12, 2: 10, 3: 8}


def test_a_weighted_sum_with_such_a_claim_is_opened() -> None:
    cohort = Cohort(
        terms_of(weighted=True),
        vectors_of(range(6), 4),
        {5: "mask"},
        weights={0: CLAIM} | dict.fromkeys(range(1, 6), 7),
    )
    assert (cohort.run() == cohort.plain()).all() and not cohort.refused
    assert cohort.server.weights[0] == 4 * 7


def test_a_federation_with_such_a_claim_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any) -> None:
    secure: dict[str, Any] = {"directions": "shared", "secure_aggregation": True, "num_server_rounds": 1}
    config = RunConfig(**{**TOY, **secure, "round_timeout": 300.0, "output": str(tmp_path / "run")})
    grid = toy_grids(monkeypatch, 4)(config)
    monkeypatch.setattr(
        device, "_train_data", lambda config, engine, place: Utterances(CLAIM if place.client_id == 2 else 5)
    )
    Federation(config, grid, observed.events).run()
    assert [r.answered for r in observed.reports] == [4]


class TestNoise:
    def test_a_claim_of_one_is_no_one_elses_noise(self, tmp_path: Path) -> None:
        honest = _noise(tmp_path, 60, 58, 64, 400)
        assert _noise(tmp_path, 60, 58, 64, 400, 1) == honest
        assert _noise(tmp_path, 60, 58, 64, 400, 1, 1) == honest

    def test_a_claim_of_a_hundred_million_starts_all_the_same(self, tmp_path: Path) -> None:
        assert _noise(tmp_path, 60, 58, 64, CLAIM) == _noise(tmp_path, 60, 58, 64, 90)

    def test_many_utterances_still_need_a_small_delta(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="target-delta is 1e-05"):
            _noise(tmp_path, 60_000, 58_000)
