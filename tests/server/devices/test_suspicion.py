"""Who is reported: scalars that have nothing to do with the others', run against them, or are copied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.devices.device_status import DeviceStatuses
from server.devices.suspicion import COPIES, Suspicions
from server.run.log import read_rows
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Contribution, Record

Change = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
QUERIES = 16


def _same(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
    return grads


def _rounds(count: int, change: Change = _same, devices: int = 10, noise: float = 1.0, seed: int = 0) -> Any:
    """Rounds of devices that measure one signal with noise of their own; `change` is made to all of them, (n, q)."""
    statuses = DeviceStatuses()
    suspicions = Suspicions(statuses, comparable=True, batch=16)
    rng = np.random.default_rng(seed)
    words: list[str] = []
    last = None
    for server_round in range(1, count + 1):
        signal = rng.standard_normal(QUERIES)
        grads = (signal + noise * rng.standard_normal((devices, QUERIES))).astype(np.float32)
        grads = change(server_round, grads)
        clients = [ClientScalars(device, 1, 5, row[None]) for device, row in enumerate(grads)]
        words += suspicions.review(server_round, clients, last)
        mean = grads.mean(axis=0, dtype=np.float64)[None]
        last = Record(server_round, 0, (Contribution(1, 0, (-0.01 * mean).astype(np.float32)),))
    return suspicions, statuses, words, last


@pytest.mark.parametrize("seed", range(5))
def test_honest_devices_are_not_reported(seed: int) -> None:
    suspicions, _, words, _ = _rounds(60, noise=2.0, seed=seed)
    assert suspicions.reported == {}
    assert words == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda row, rng: rng.standard_normal(QUERIES), "unrelated"),
        (lambda row, rng: 1e6 * rng.standard_normal(QUERIES), "unrelated"),
        (lambda row, rng: 0 * row, "unrelated"),
        (lambda row, rng: -row, "opposed"),
        (lambda row, rng: -100 * row, "opposed"),
    ],
)
def test_two_hostile_of_ten_are_told_apart(change: Any, kind: str) -> None:
    rng = np.random.default_rng(7)

    def attack(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        grads[3], grads[6] = change(grads[3], rng), change(grads[6], rng)
        return grads

    suspicions, _, words, _ = _rounds(40, attack)
    assert set(suspicions.reported) == {"3", "6"}
    assert all(report.startswith(kind) for report in suspicions.reported.values())
    assert any(word.startswith(f"device 3 is suspect: {kind}") for word in words)


def test_an_offset_is_not_taken_for_agreement() -> None:
    def shift(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        grads[3] += 1000
        return grads

    reported = _rounds(40, shift)[0].reported
    assert set(reported) == {"3"}


def test_copies_are_reported_of_both_after_three_rounds() -> None:
    def copy(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        grads[8] = 2 * grads[5]
        return grads

    assert _rounds(COPIES - 1, copy)[0].reported == {}
    suspicions, _, words, _ = _rounds(COPIES, copy)
    assert set(suspicions.reported) == {"5", "8"}
    assert "those of device 5" in suspicions.reported["8"]
    assert len(words) == 2


def test_copies_are_forgotten_when_they_end() -> None:
    def copy(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        if server_round <= COPIES:
            grads[8] = grads[5]
        return grads

    suspicions, _, words, _ = _rounds(COPIES + 1, copy)
    assert suspicions.reported == {}
    assert words[-1] == "device 8 is not suspect any more"


def test_the_update_of_the_round_before_is_recognised() -> None:
    kept: list[NDArray[np.float32]] = []

    def echo(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        if kept:
            grads[2] = kept[-1]
        kept.append(grads.mean(axis=0))
        return grads

    reported = _rounds(COPIES + 2, echo)[0].reported
    assert "the update of the round before" in reported["2"]


def test_votes_that_agree_are_not_copies() -> None:
    suspicions, _, _, _ = _rounds(10, lambda _, grads: np.sign(grads), noise=0.01)
    assert suspicions.reported == {}


@pytest.mark.parametrize(("shape", "devices", "shared"), [((1, 2), 5, True), ((1, 16), 2, True), ((1, 16), 5, False)])
def test_where_nothing_can_be_compared_nothing_is_said(shape: tuple[int, int], devices: int, shared: bool) -> None:
    statuses = DeviceStatuses()
    suspicions = Suspicions(statuses, shared, batch=16)
    for server_round in range(1, 20):
        clients = [ClientScalars(device, 1, 5, np.full(shape, device, np.float32)) for device in range(devices)]
        assert suspicions.review(server_round, clients, None) == []
    assert suspicions.reported == {}


def test_evidence_outlives_the_server(tmp_path: Path) -> None:
    def flip(server_round: int, grads: NDArray[np.float32]) -> NDArray[np.float32]:
        grads[4] = -grads[4]
        return grads

    _, statuses, _, _ = _rounds(20, flip)
    statuses.save(tmp_path, 20)
    again = DeviceStatuses()
    again.load(tmp_path, 20)
    assert again.of(4).scalars == statuses.of(4).scalars
    assert Suspicions(again, comparable=True, batch=16).reported["4"].startswith("opposed")


def test_a_federation_reports_in_its_files(
    settings: Callable[..., RunConfig], federate: Any, grid_of: Any, observed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(directions="shared", num_queries=4, num_server_rounds=2)
    monkeypatch.setattr("server.devices.suspicion.OPPOSED", -1e9)
    federate(config)
    folder = Path(config.output)
    assert "device 0 is suspect: opposed" in observed.text
    assert set(read_rows(folder / "rounds.jsonl")[-1]["suspected"]) == {"0", "1", "2"}
    devices = json.loads((folder / "devices.json").read_text())["devices"]
    assert all(device["scalars"]["report"].startswith("opposed") for device in devices)
    assert all(device["scalars"]["rounds"] == 2 for device in devices)


def test_too_few_replies_for_a_rule_leave_the_round_empty(
    settings: Callable[..., RunConfig], federate: Any, grid_of: Any, observed: Any, ledger_of: Any
) -> None:
    config = settings(
        directions="shared",
        weighting="uniform",
        aggregation="trimmed-mean",
        min_replies=3,
        num_queries=4,
        max_bad_rounds=9,
    )
    grid = grid_of(config)
    grid[2].after = lambda server_round, payload: b"garbage" if server_round == 2 else payload
    federate(config, grid)
    assert [len(record.contributions) for record in ledger_of(config).records] == [1, 0, 1]
    assert dict(observed.reports[1].refused) == {"malformed": 1, "too-few": 1}


def test_independent_directions_are_said_to_hide_hostile_devices(
    settings: Callable[..., RunConfig], federate: Any, observed: Any
) -> None:
    federate(settings(aggregation="norm-clipping", weighting="uniform", min_replies=3, num_server_rounds=1))
    assert "with independent directions no device's scalars can be compared" in observed.text
