"""Attack: a server is all the other devices of a sum, whose shares of the noise a device's owner counts on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from secure_worker import Sum, Victim

from client.device.demands import Demands
from client.secure_sum import _sums
from zo_common.errors import ConfigError, SecureAggregationError
from zo_common.privacy.mechanism import Mechanism

MASKED = Mechanism("device", 1.0, 2.0, 1, masked=True)
LIMITS: dict[str, dict[str, Any]] = {"account": {"max_epsilon": 100.0}, "demand": {"demands": Demands("device", 1.0)}}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Victim(tmp_path, monkeypatch, signed=True)
    yield made
    made.close()


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_a_share_of_the_noise_is_no_noise_where_the_others_may_be_the_servers(
    victim: Victim, limit: dict[str, Any]
) -> None:
    """Of 65536 devices that a server makes up, a device adds a 200th of the noise that its account is charged for."""
    victim.restart(**limit)
    attacked = Sum(victim, range(1, 6), victim.plan(privacy=MASKED))
    with pytest.raises(SecureAggregationError, match=r"without peers\.keys nobody knows that there are any"):
        attacked.run()
    assert not (victim.folder / "privacy.account").exists()
    assert not (victim.folder / "state" / "masked.seeds").exists()


def test_among_devices_that_it_knows_it_answers(known: Victim) -> None:
    known.restart(max_epsilon=100.0)
    assert len(Sum(known, range(1, 6), known.plan(privacy=MASKED)).run()) == 3


def test_whoever_demands_nothing_trusts_the_server_with_it(victim: Victim) -> None:
    assert len(Sum(victim, range(1, 6), victim.plan(privacy=MASKED)).run()) == 3


@pytest.mark.parametrize(
    ("node", "limited"), [({}, False), ({"max-epsilon": 8.0}, True), ({"least-privacy": "device"}, True)]
)
def test_a_device_without_a_worker_counts_alike(node: dict[str, Any], limited: bool) -> None:
    from flwr.app import Context, RecordDict

    assert _sums(Context(1, 5, node, RecordDict(), {}))._limited == limited


@pytest.mark.parametrize("more", [{}, {"least-noise": 0.0}, {"max-epsilon": 0.0}])
def test_a_level_alone_would_take_a_millionth_of_the_noise(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a millionth of a plan's noise would do"):
        Demands.of({"least-privacy": "example"} | more)


@pytest.mark.parametrize("more", [{"least-noise": 0.5}, {"max-epsilon": 8.0}])
def test_a_level_with_a_limit_is_one(more: dict[str, Any]) -> None:
    assert Demands.of({"least-privacy": "example"} | more).least_privacy == "example"
