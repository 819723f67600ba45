"""One run with devices that are late, wrong, hostile or out of time: what is said of each, and the others go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fleet.agreement import check_agreement, contributors
from benchmarks.fleet.children import wait_until
from benchmarks.fleet.processes import Fleet, Run

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(420)]

ROUNDS, JOINED = 7, 3
# behind: Flower's clock on anna's device is 100 s late; ahead: on finn's, 60 s early
SOUND = ("anna", "ben", "gina")
BEHIND, AHEAD = -100.0, 60.0
HELPERS = Path(__file__).parent.parent / "helpers"
STAND_IN = (sys.executable, str(HELPERS / "stand_in.py"))


def wrong_clock(seconds: float) -> dict[str, str]:
    """Variables with which Flower in a process reads the time wrong, more is later."""
    return {"PYTHONPATH": str(HELPERS / "clock"), "ZO_ASR_TEST_CLOCK": str(seconds)} if seconds else {}


@pytest.fixture(scope="module")
def run(
    tiny_whisper: Path, other_whisper: Path, mini_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Fleet, Run]]:
    """anna, ben; cleo with another model; dora, who sends garbage; emil, who drifts; finn too early; gina late."""
    late = ("anna", "ben", "cleo", "dora", "emil", "finn", "gina")
    with Fleet(tmp_path_factory.mktemp("fleet"), tiny_whisper, mini_corpus, (), late) as fleet, fleet.telling():
        fleet.start_worker("anna")
        fleet.start_worker("ben")
        fleet.start_worker("cleo", model=other_whisper)
        fleet.start_worker("dora", stand_in=[*STAND_IN, "garbage"])
        fleet.start_worker("emil", stand_in=[*STAND_IN, "drifting"])
        fleet.start_worker("finn")
        for name in late[:-1]:
            fleet.start_supernode(name, wrong_clock({"anna": BEHIND, "finn": AHEAD}.get(name, 0.0)))
        fleet.wait_for_devices(late[:5])
        wait_until("finn tries again", lambda: fleet.children["supernode-finn"].starts > 2, 60)
        fleet.children.stop("supernode-finn")
        run = fleet.start(
            "strangers",
            num_server_rounds=ROUNDS,
            local_steps=40,
            min_clients=2,
            run_seed=21,
            message_bytes=1024,
            round_timeout=60.0,
        )
        run.wait_for_round(JOINED)
        fleet.start_device("gina")
        wait_until("gina's worker", partial(fleet.is_awake, "gina"), 60)
        assert run.finish(240) == 0, run.said
        yield fleet, run
        print(fleet.children.tails())


def test_the_sound_devices_and_the_server_agree(run: tuple[Fleet, Run]) -> None:
    ledger = check_agreement(*run, SOUND)

    assert {0, 1} <= set.intersection(*map(set, contributors(ledger)))
    # emil drifts when there is a round to apply
    assert {c for clients in contributors(ledger)[1:] for c in clients} == {0, 1, 6}


def test_a_late_device_fetches_the_ledger_in_pieces_and_contributes(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    rounds = [n for n, clients in enumerate(contributors(made.ledger), 1) if fleet.client_id("gina") in clients]
    assert rounds == list(range(rounds[0], ROUNDS + 1))
    assert rounds[0] > JOINED
    said = fleet.children["worker-gina"].log.read_text()
    pieces = said.split(f"train round {rounds[0]}: ok")[0].count("sync round")
    assert pieces >= 2
    assert made.devices[6]["standing"] == "ok"


def test_a_clock_that_is_behind_is_no_obstacle(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    assert [clients.count(fleet.client_id("anna")) for clients in contributors(made.ledger)] == [1] * ROUNDS


def test_a_clock_that_is_ahead_is_refused(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    assert fleet.children["supernode-finn"].starts > 1  # each ended as it was refused
    assert '/v1/fleet/activate-node HTTP/1.1" 401' in fleet.children["superlink"].log.read_text()
    assert "finn" not in fleet.online()
    assert fleet.client_id("finn") not in made.devices


def test_another_base_model_is_left_out_with_a_word(run: tuple[Fleet, Run]) -> None:
    _, made = run

    (word,) = {line for line in made.said.splitlines() if "left out" in line and "device 2" in line}
    assert "base model" in word


def test_garbage_is_refused_and_counted(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    entry = made.devices[fleet.client_id("dora")]
    assert entry["refused"].get("malformed", 0) >= 3
    assert entry["standing"] == "backing-off"


def test_a_drifting_device_is_told_to_rebuild_and_then_excluded(run: tuple[Fleet, Run]) -> None:
    fleet, made = run

    emil = fleet.client_id("emil")
    told = made.said.index(f"device {emil} must rebuild")
    excluded = made.said.index(f"device {emil} is excluded: its weights were off again after a rebuild")
    assert told < excluded
    assert made.devices[emil]["standing"] == "excluded"
