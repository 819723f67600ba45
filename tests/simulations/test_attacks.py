"""Hostile devices' scalars by hand, wrong transcripts, and a ClientApp made hostile from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from fake_grid import FakeGrid, Memory

from simulations.attacks import ATTACKS, Seen, attack_of, colluding, flip_labels, flipped, free_rider, hostile_app
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError

# three devices must answer, however busy the machine is
SHARED: dict[str, Any] = {
    "directions": "shared",
    "weighting": "uniform",
    "num_queries": 4,
    "local_steps": 1,
    "min_replies": 3,
    "round_timeout": 300.0,
}
OWN = np.array([[3.0, -4.0]], np.float32)


def test_scalars_by_hand() -> None:
    assert attack_of("none")(Seen(OWN)) is OWN
    assert attack_of("sign-flip")(Seen(OWN)).tolist() == [[-3, 4]]
    assert attack_of("large")(Seen(OWN)).tolist() == [[-300, 400]]
    last = np.array([[-0.6, -0.8]], np.float32)
    np.testing.assert_allclose(free_rider(Seen(OWN, last=last)), [[3, 4]], rtol=1e-6)
    assert free_rider(Seen(OWN)).tolist() == [[0, 0]]


def test_noise_is_the_devices_own_and_of_its_size() -> None:
    own = np.full((1, 4000), 2.0, np.float32)
    first, second = (attack_of("random")(Seen(own, rng=np.random.default_rng(seed))) for seed in (1, 2))
    assert abs(float(first.std()) - 2.0) < 0.1
    assert abs(float(np.corrcoef(first[0], second[0])[0, 1])) < 0.1


def test_colluders_send_one_vector_within_the_honest_spread() -> None:
    rng = np.random.default_rng(0)
    honest = (5.0 + rng.standard_normal((20, 1, 8))).astype(np.float32)
    band = list(honest[:5])
    sent = [colluding(Seen(own, band, 20)) for own in band]
    assert all(np.array_equal(sent[0], other) for other in sent)
    low, high = honest.min(axis=0), honest.max(axis=0)
    assert ((sent[0] > low - 1) & (sent[0] < high)).all()
    assert (sent[0] < np.mean(band, axis=0)).all()  # against the sign of the mean


def test_every_attack_keeps_shape_and_type() -> None:
    for name in ATTACKS:
        found = attack_of(name)(Seen(OWN, [OWN, 2 * OWN], 5, OWN))
        assert (found.shape, found.dtype) == (OWN.shape, np.float32)
        assert np.isfinite(found).all()
    with pytest.raises(ConfigError, match="expected one of none, sign-flip"):
        attack_of("bribe")  # type: ignore[arg-type]


def test_no_recording_keeps_its_transcript() -> None:
    texts = ["a b", "a b", "c", "d"]
    wrong = flipped(texts)
    assert all(before != after for before, after in zip(texts, wrong, strict=True))
    assert set(wrong) <= set(texts)
    assert flipped(["a b", "a b"]) == ["b a", "b a"]


def test_labels_go_with_the_text_and_sound_stays() -> None:
    @dataclass(frozen=True)
    class Example:
        features: str
        seconds: float
        text: str
        tokens: tuple[int, ...]
        where: str

    examples = [Example("x", 1.0, "one", (1,), "row 1"), Example("y", 2.0, "two", (2,), "row 2")]
    assert flip_labels(examples) == (
        Example("x", 1.0, "two", (2,), "row 1"),
        Example("y", 2.0, "one", (1,), "row 2"),
    )
    with pytest.raises(ConfigError, match="two different texts"):
        flip_labels(examples[:1])


@pytest.mark.parametrize("attack", ["colluding", "label-flip"])
def test_what_one_device_cannot_do_alone_is_refused(attack: Any) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks\.hostile\.attackers"):
        hostile_app(RunConfig(), attack, {1})


def test_a_hostile_device_of_a_federation_is_outvoted(
    settings: Callable[..., RunConfig],
    memories: list[Memory],
    federate: Any,
    observed: Any,
    ledger_of: Any,
) -> None:
    shared: dict[str, Any] = {
        "directions": "shared",
        "weighting": "uniform",
        "num_queries": 4,
        "local_steps": 1,
        "min_replies": 3,
    }
    shared["round_timeout"] = 300.0  # three devices must answer, however busy the machine is
    largest = {}
    for rule in ("mean", "median"):
        config = settings(
            **SHARED,
            aggregation=rule,
            scale="unit",
            learning_rate=0.005,
            num_server_rounds=1,
            output=settings().output + rule,
        )
        federate(config, FakeGrid(config, memories, hostile_app(config, "large", {2})))
        (record,) = ledger_of(config).records
        (contribution,) = record.contributions
        largest[rule] = float(np.abs(contribution.coefficients).max())
    assert largest["median"] < 2 * largest["mean"]
    # too large for the lattice: the mean must refuse it, a median takes it and may not be emptied by it
    assert [dict(report.refused) for report in observed.reports] == [{"out-of-range": 1}, {}]


def test_votes_travel_as_bits(
    settings: Callable[..., RunConfig], memories: list[Memory], federate: Any, observed: Any, ledger_of: Any
) -> None:
    shared: dict[str, Any] = {
        "directions": "shared",
        "weighting": "uniform",
        "num_queries": 4,
        "local_steps": 1,
        "min_replies": 3,
    }
    shared["round_timeout"] = 300.0  # three devices must answer, however busy the machine is
    config = settings(**SHARED, aggregation="sign-vote", num_server_rounds=2, lr_schedule="constant")
    federate(config, FakeGrid(config, memories))
    step = np.float32(np.float64(np.float32(0.05)) / 4)
    for record in ledger_of(config).records:
        assert np.abs(record.contributions[0].coefficients).tolist() == [[step] * 4]
    assert observed.reports[0].up.payload == 3 * (51 + 1)
