"""An undisturbed run of three devices on real Whisper-tiny.en: TLS, node keys, proxy, resident workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet.agreement import check_agreement, contributors
from benchmarks.fleet.processes import SPEAKERS, Fleet, Run

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(420)]

ROUNDS = 2


@pytest.fixture(scope="module")
def run(whisper_dir: Path, mini_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Run]]:
    """Two rounds, then an evaluation where the recordings are."""
    with Fleet(tmp_path_factory.mktemp("fleet"), whisper_dir.resolve(), mini_corpus) as fleet, fleet.telling():
        run = fleet.start(
            "dialect",
            num_server_rounds=ROUNDS,
            learning_rate=1e-4,
            eval_split="test",
            evaluate_on="clients",
            guard_split="none",  # no records but those of rounds
            round_timeout=180.0,
        )
        assert run.finish(300) == 0, run.said
        yield fleet, run
        print(fleet.children.tails())


def test_all_take_part_and_agree_with_a_replay(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    ledger = check_agreement(fleet, made, SPEAKERS)

    assert contributors(ledger) == [[0, 1, 2]] * ROUNDS


def test_the_last_evaluation_was_at_the_servers_checksum_on_every_device(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    result = json.loads((made.output / "evaluation.json").read_text())
    checksum = f"{made.ledger.records[-1].checksum:016x}"
    assert result["checksum"] == checksum
    assert result["after"]["devices"] == 3  # an answer at another checksum is refused
    assert [fleet.info(name)["checksum"] for name in SPEAKERS] == [checksum] * 3


def test_status_shows_devices_rounds_and_bytes(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    shown = _status(fleet, made.name)

    assert {name: state.split(",")[0] for name, state in shown["processes"].items()} == {
        "superlink": "up",
        "superexec": "up",
        "proxy": "up",
    }
    devices = {device["name"]: device for device in shown["devices"]}
    assert set(devices) == set(SPEAKERS)
    for device in devices.values():
        assert device["state"] == "online"
        assert device["standing"] == "ok"
        assert device["last_seen_round"] == ROUNDS
        assert device["refused"] == {}
    assert sum(device["payload_up"] for device in devices.values()) == sum(r["up"]["payload"] for r in made.rows)
    assert sum(device["payload_down"] for device in devices.values()) == sum(r["down"]["payload"] for r in made.rows)
    assert [row["answered"] for row in shown["rounds"]] == [3] * ROUNDS
    assert shown["rounds"][-1]["checksum"] == f"{made.ledger.records[-1].checksum:016x}"
    assert shown["certificates"]["server.crt"] > 300


def test_the_wire_carries_no_model_and_no_audio(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    for name in SPEAKERS:
        wire = fleet.wires[name]
        assert 0 < made.devices[fleet.client_id(name)]["payload_up"] < wire.up
        # Flower's requests for some minutes; the model is 151 MB, a recording 16 kB
        assert wire.up + wire.down < 2_000_000


def _status(fleet: Fleet, run: str) -> dict[str, Any]:
    done = fleet.cli("status", str(fleet.deployment.root), run, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
