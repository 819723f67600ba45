"""What dies, hangs or fills up costs no more than the round in flight; in the end all hold the same bits.

Faults that do not meet share a run: each test looks at the rounds around its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fleet_reference import record_bytes, undisturbed

from benchmarks.fleet.agreement import check_agreement, contributors
from benchmarks.fleet.children import wait_until
from benchmarks.fleet.processes import Fleet, Run

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(420)]

NAMES = ("anna", "ben", "cleo")
ANNA, BEN, CLEO = range(3)
ROUNDS = 8
TRAINING = 50  # local steps that take long enough to be met


@pytest.fixture(scope="module")
def running(tiny_whisper: Path, mini_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three devices."""
    with Fleet(tmp_path_factory.mktemp("fleet"), tiny_whisper, mini_corpus, NAMES) as made:
        yield made


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    """All devices there; where the test fails, its logs are shown."""
    running.wait_for_devices(NAMES, 120)
    yield running
    print(running.children.tails())


def _is_training(fleet: Fleet, name: str) -> bool:
    job = fleet.info(name)["job"]
    return bool(job) and job["kind"] == "train" and 0 < job["step"] < job["steps"]


def _missed(run: Run, client: int) -> list[int]:
    return [n for n, clients in enumerate(contributors(run.ledger), 1) if client not in clients]


class TestShortAbsences:
    """A worker is killed in training, then a SuperNode ended, then the SuperLink killed; each comes back at once."""

    @pytest.fixture(scope="class")
    def run(self, running: Fleet) -> Iterator[tuple[Fleet, Run, dict[str, int]]]:
        with running.telling():
            run = running.start("short", run_seed=11, num_server_rounds=ROUNDS, local_steps=TRAINING)
            at: dict[str, int] = {}
            run.wait_for_round(1)
            wait_until("anna trains", partial(_is_training, running, "anna"), 60, every=0.02)
            running.children.kill("worker-anna")
            at["worker"] = len(run.rows) + 1
            run.wait_for_round(at["worker"])
            running.children.kill("supernode-ben", signal.SIGTERM)
            at["supernode"] = len(run.rows) + 1
            run.wait_for_round(at["supernode"] + 1)
            running.wait_for_devices(NAMES, 60)
            running.children.kill("superlink")
            at["superlink"] = len(run.rows) + 1
            assert run.finish(240) == 0, run.said
            yield running, run, at
            print(running.children.tails())

    def test_all_agree_in_the_end(self, run: tuple[Fleet, Run, dict[str, int]]) -> None:
        fleet, made, _ = run

        check_agreement(fleet, made, NAMES)

    def test_a_worker_killed_in_training_recovers_from_its_disk(self, run: tuple[Fleet, Run, dict[str, int]]) -> None:
        fleet, made, at = run

        assert set(_missed(made, ANNA)) <= {at["worker"]} | _around_superlink(made, at)
        said = fleet.children["worker-anna"].log.read_text()
        starts = [line for line in said.splitlines() if " recordings in " in line]
        assert len(starts) == fleet.children["worker-anna"].starts == 2
        # the state before the round that it was killed in was on its disk
        assert f"round {at['worker'] - 1}, checksum {made.ledger.records[at['worker'] - 2].checksum:016x}" in starts[-1]

    def test_a_supernode_that_was_ended_rejoins(self, run: tuple[Fleet, Run, dict[str, int]]) -> None:
        fleet, made, at = run

        absent = set(_missed(made, BEN)) - _around_superlink(made, at)
        assert absent <= {at["supernode"], at["supernode"] + 1, at["supernode"] + 2}
        assert fleet.children["supernode-ben"].starts >= 2

    def test_a_killed_superlink_comes_back_and_the_run_goes_on(self, run: tuple[Fleet, Run, dict[str, int]]) -> None:
        fleet, made, at = run

        assert fleet.children["superlink"].starts == 2
        assert "finished; ledger and model are in" in made.said
        assert [row["server_round"] for row in made.rows] == list(range(1, ROUNDS + 1))
        assert at["superlink"] < ROUNDS
        assert contributors(made.ledger)[-1] == [ANNA, BEN, CLEO]


def _around_superlink(run: Run, at: dict[str, int]) -> set[int]:
    """The rounds in which devices may have been looking for the SuperLink."""
    return set(range(at["superlink"], run.settings["num-server-rounds"]))


class TestLongAbsences:
    """For a minute anna's network is gone; meanwhile cleo's SuperNode is killed and begun again with the same key."""

    @pytest.fixture(scope="class")
    def run(self, running: Fleet) -> Iterator[tuple[Fleet, Run, int]]:
        with running.telling():
            running.wait_for_devices(NAMES, 120)
            run = running.start("long", run_seed=12, num_server_rounds=13, round_timeout=20.0)
            run.wait_for_round(2)
            running.wires["anna"].cut()
            running.children.kill("supernode-cleo")
            time.sleep(60)
            running.wires["anna"].heal()
            healed = len(run.rows)
            running.wait_for_devices(NAMES, 120)
            assert run.finish(300) == 0, run.said
            yield running, run, healed
            print(running.children.tails())

    def test_all_agree_in_the_end(self, run: tuple[Fleet, Run, int]) -> None:
        fleet, made, _ = run

        ledger = check_agreement(fleet, made, NAMES)

        assert _missed(made, BEN) == []  # the others went on
        assert contributors(ledger)[-1] == [ANNA, BEN, CLEO]

    def test_a_network_cut_for_a_minute_costs_the_rounds_of_that_minute(self, run: tuple[Fleet, Run, int]) -> None:
        _, made, healed = run

        missed = _missed(made, ANNA)
        assert missed
        assert missed == list(range(missed[0], missed[-1] + 1))
        assert missed[0] == 3
        assert missed[-1] <= healed + 4

    def test_a_killed_supernode_is_let_in_again_with_its_key(self, run: tuple[Fleet, Run, int]) -> None:
        fleet, made, _ = run

        missed = _missed(made, CLEO)
        assert missed == list(range(3, missed[-1] + 1))
        # refused until the SuperLink had seen it offline
        assert fleet.children["supernode-cleo"].starts > 2
        assert "Failed to activate SuperNode" in fleet.children["supernode-cleo"].log.read_text()


def test_a_killed_server_app_is_resumed_to_the_bits_of_an_undisturbed_run(fleet: Fleet, tmp_path: Path) -> None:
    # whom the kill caught between a message and its content waits until SuperLink gives the dead run up, after 60 s
    run = fleet.start("resumed", run_seed=13, num_server_rounds=4, local_steps=20, round_timeout=120.0)
    run.wait_for_round(2)
    os.kill(fleet.server_app(), signal.SIGKILL)
    wait_until("the ServerApp's end", lambda: not fleet.children.of_marker("flwr-serverapp"), 20)
    kept = record_bytes(run.output)
    run.process.send_signal(signal.SIGINT)  # nobody watches the run that failed
    run.finish(60)

    resumed = fleet.resume(run)

    assert resumed.finish(240) == 0, resumed.said
    assert f"after round {len(kept)}" in resumed.said
    check_agreement(fleet, resumed, NAMES)
    assert 2 <= len(kept) < 4
    assert record_bytes(run.output)[: len(kept)] == kept
    assert record_bytes(run.output) == undisturbed(fleet, run, tmp_path)
    verified = fleet.command(["zo-asr-ledger", "verify", str(run.output / "ledger.zo"), "--threads", "1", "--json"])
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["checksum"] == f"{run.ledger.records[-1].checksum:016x}"


@pytest.fixture
def small_disk(running: Fleet) -> Iterator[Path]:
    """The output folder of the run "full" on a file system of its own."""
    folder = running.deployment.runs / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, timeout=20)


def test_a_full_disk_stops_the_run_and_freed_it_is_resumed(fleet: Fleet, small_disk: Path, tmp_path: Path) -> None:
    # header and first round leave less of the first page than the second round takes: its append needs room
    run = fleet.start("full", run_seed=14, num_server_rounds=3, local_steps=30, num_queries=6, batch_size=1)
    run.wait_for_round(1)
    page = os.sysconf("SC_PAGE_SIZE")
    size, header = (run.output / "ledger.zo").stat().st_size, 300
    assert page - size % page < size - 2 * header, "the settings above must be chosen anew"
    _fill(small_disk / "filler")

    assert run.finish(180) != 0
    (word,) = [line for line in run.said.splitlines() if line.startswith("error: ")]
    assert "could not be written" in word
    assert "No space left" in word
    kept = record_bytes(run.output)
    assert len(kept) == 1
    (small_disk / "filler").unlink()
    resumed = fleet.resume(run)

    assert resumed.finish(180) == 0, resumed.said
    check_agreement(fleet, resumed, NAMES)
    assert record_bytes(run.output)[: len(kept)] == kept
    assert record_bytes(run.output) == undisturbed(fleet, run, tmp_path)


def _fill(path: Path) -> None:
    """Take every free page."""
    with path.open("wb") as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    os.write(file.fileno(), bytes(size))
            except OSError:
                continue
    assert shutil.disk_usage(path).free == 0
