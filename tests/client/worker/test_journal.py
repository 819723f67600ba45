"""What a device has on disk leads back to a verified global state, whatever was interrupted or damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import journal_loop
import pytest
from listening import listen
from toy_engine import ToyEngine, history, toy_engine

from client.worker.journal import Journal
from zo_common.binary.durable import seal
from zo_common.errors import ConfigError
from zo_common.ledger.record import Record
from zo_common.ledger.snapshot import encode_snapshot
from zo_common.wire.plan import Status

KILLS = 60


class Device:
    """A state folder and what its journals said; `restart` is what a killed worker comes back with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = listen("client.worker")
        self.journal = Journal(folder)

    def restart(self) -> ToyEngine:
        self.journal.close()
        self.journal = Journal(self.folder)
        saved = self.journal.saved()
        engine = toy_engine(**({"trained_tensors": saved.settings["trained-tensors"]} if saved else {}))
        if saved is not None:
            self.journal.recover(engine, saved)
        return engine


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "state")


def _start_from(engine: ToyEngine, server_round: int, records: list[Record]) -> None:
    """Be at a round by a snapshot."""
    target = toy_engine()
    target.pretend(records[:server_round])
    data = encode_snapshot(toy_engine().state, target.state)
    engine.rebuild()
    assert engine.start_from(data, server_round, target.state.checksum()) is Status.OK


def test_rounds_are_back_after_a_restart(device: Device) -> None:
    engine, records = toy_engine(), history(5)
    for count in range(1, 6):
        engine.pretend(records[:count])
        device.journal.save(engine)

    back = device.restart()

    assert back.applied == records
    assert back.state.checksum() == records[-1].checksum
    assert device.words == []


def test_a_new_folder_is_the_base_without_a_word(device: Device) -> None:
    assert device.restart().have_round == 0
    assert device.words == []
    assert device.folder.stat().st_mode & 0o777 == 0o700


def test_going_back_and_another_history_are_saved(device: Device) -> None:
    engine, ours, theirs = toy_engine(), history(5, 1), history(5, 2)
    for records in (ours, ours[:2], [*ours[:2]], theirs, theirs[:1]):
        engine.pretend(records)
        device.journal.save(engine)
        assert device.journal.unsaved == ""
        assert device.restart().applied == records
    assert device.words == []


def test_rounds_without_checksums_are_verified_by_the_state_file(device: Device) -> None:
    engine, records = toy_engine(), history(4, checksums=False)
    engine.pretend(records)
    device.journal.save(engine)

    back = device.restart()

    assert back.applied == records
    assert back.state.checksum() == engine.state.checksum()


def test_rounds_that_nothing_verifies_are_dropped(device: Device) -> None:
    """As after a kill between the ledger and the state file."""
    engine, records = toy_engine(), history(4, checksums=False)
    engine.pretend(records[:2])
    device.journal.save(engine)
    old = (device.folder / "device.state").read_bytes()
    engine.pretend(records)
    device.journal.save(engine)
    (device.folder / "device.state").write_bytes(old)

    back = device.restart()

    assert back.applied == records[:2]
    assert "2 saved rounds after round 2 cannot be verified" in device.words[0]
    device.journal.save(back)
    assert device.restart().applied == records[:2]


def test_rounds_that_do_not_lead_to_their_checksum_are_not_taken(device: Device) -> None:
    """The file is whole; what it says of the state is wrong."""
    engine, records = toy_engine(), history(4)
    engine.pretend([*records[:3], replace(records[3], checksum=records[3].checksum ^ 1)])
    device.journal.save(engine)

    back = device.restart()

    assert (back.applied, back.state.checksum()) == ([], back.base_checksum)
    assert f"replay does not reach the checksum {records[3].checksum ^ 1:016x} of round 4" in device.words[0]


def test_rounds_that_do_not_lead_to_the_state_files_checksum_are_not_taken(device: Device) -> None:
    engine = toy_engine()
    engine.pretend(history(4, checksums=False))
    device.journal.save(engine)
    saved = device.journal.saved()
    assert saved is not None and saved.checksum == engine.state.checksum()
    body = json.dumps(asdict(replace(saved, checksum=5))).encode()
    (device.folder / "device.state").write_bytes(seal(b"ZOST", 1, body))

    back = device.restart()

    assert (back.applied, back.state.checksum()) == ([], back.base_checksum)
    assert "replay does not reach the checksum 0000000000000005 of round 4" in device.words[0]


def test_a_snapshot_and_the_rounds_after_it(device: Device) -> None:
    records = history(6)
    engine = toy_engine()
    _start_from(engine, 4, records)
    device.journal.save(engine)
    assert engine.snapshot is None  # on disk, no longer in memory
    engine.state.apply([u for r in records[4:] for u in r.updates()])
    engine.applied = records[4:]
    device.journal.save(engine)

    back = device.restart()

    assert (back.start_round, back.have_round) == (4, 6)
    assert back.state.checksum() == records[-1].checksum
    assert device.words == []
    back.rebuild()
    device.journal.save(back)
    assert device.restart().have_round == 0
    assert not (device.folder / "snapshot.bin").exists()


def test_another_engine_starts_other_files(device: Device) -> None:
    engine = toy_engine()
    engine.pretend(history(3))
    device.journal.save(engine)
    other = toy_engine(trained_tensors="weight")
    records = history(2, start=toy_engine(trained_tensors="weight"))
    other.pretend(records)
    device.journal.save(other)

    back = device.restart()

    assert back.config.trained_tensors == "weight"
    assert back.applied == records


def test_another_base_model_is_noticed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy_engine()
    engine.pretend(history(3))
    device.journal.save(engine)
    saved = device.journal.saved()
    assert saved is not None
    other = toy_engine()
    device.journal.recover(other, replace(saved, fingerprint="ab" * 32))

    assert other.have_round == 0
    assert "it is of base model abababababababab" in device.words[0]


@pytest.mark.parametrize("name", ["device.state", "ledger.zo", "snapshot.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_file_is_a_word_and_a_verified_state(device: Device, name: str, damage: str) -> None:
    records = history(6)
    engine = toy_engine()
    _start_from(engine, 2, records)
    engine.state.apply([u for r in records[2:] for u in r.updates()])
    engine.applied = records[2:]
    device.journal.save(engine)
    path = device.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 3]), "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()

    back = device.restart()

    expected = {0: back.base_checksum} | {r.server_round: r.checksum for r in records}
    assert back.state.checksum() == expected[back.have_round]
    assert back.have_round in (0, 2)
    gone_without_trace = damage == "gone" and name != "snapshot.bin"
    assert bool(device.words) is not gone_without_trace
    back.pretend(records[back.start_round : 5])
    device.journal.save(back)
    assert device.restart().have_round == 5


def test_a_second_worker_on_one_folder_is_refused(device: Device) -> None:
    with pytest.raises(ConfigError, match=r"another worker uses state folder .*: stop it, or name another"):
        Journal(device.folder)
    device.journal.close()
    Journal(device.folder).close()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written .*: name another"):
        Journal(tmp_path / "file" / "state")


class TestAnswer:
    def test_the_last_answer_is_kept(self, device: Device) -> None:
        assert device.journal.answer() is None
        device.journal.save_answer(b"d" * 32, b"first")
        device.journal.save_answer(b"e" * 32, b"second")
        assert device.journal.answer() == (b"e" * 32, b"second")

    def test_a_damaged_one_is_a_word(self, device: Device) -> None:
        device.journal.save_answer(b"d" * 32, b"first")
        path = device.folder / "answer.bin"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert device.journal.answer() is None
        assert "the last answer" in device.words[0]

    def test_a_full_disk_is_a_word(self, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "fsync", _full)
        device.journal.save_answer(b"d" * 32, b"first")
        assert "No space left" in device.words[0]


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def _failing(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
    """Every write is counted, and the `at`-th fails; tells whether it came to that."""
    count = [0]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == at:
                _full()
            return original(*args, **kwargs)

        return call

    for where, name in ((os, "fsync"), (os, "replace"), (os, "truncate"), (Path, "unlink")):
        monkeypatch.setattr(where, name, counted(getattr(where, name)))
    return lambda: count[0] >= at


@pytest.mark.parametrize("scene", ["first", "extend", "unknown checksums", "another history", "snapshot", "base again"])
def test_every_write_failing_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: str) -> None:
    ours, theirs = history(6, 1), history(6, 2, checksums=scene != "unknown checksums")
    for at in range(1, 40):
        device = Device(tmp_path / str(at))
        engine = toy_engine()
        if scene != "first":
            engine.pretend(ours[:3])
            device.journal.save(engine)
        if scene in ("another history", "unknown checksums"):
            engine.pretend(theirs)
        elif scene == "snapshot":
            _start_from(engine, 5, ours)
        elif scene == "base again":
            _start_from(engine, 5, ours)
            device.journal.save(engine)
            engine.rebuild()
        else:
            engine.pretend(ours)
        now = engine.have_round, engine.state.checksum()
        with monkeypatch.context() as patch:
            failed = _failing(patch, at)
            device.journal.save(engine)
            reached = failed()
        assert (engine.have_round, engine.state.checksum()) == now  # training goes on
        if not reached:
            assert at > 1
            break
        assert ("No space left" in device.journal.unsaved) == (device.words != [])
        shutil.copytree(device.folder, tmp_path / f"{at} killed")
        assert _is_verified(Device(tmp_path / f"{at} killed").restart())
        device.journal.save(engine)
        assert device.journal.unsaved == ""
        again = device.restart()
        assert (again.have_round, again.state.checksum()) == now
    else:
        raise AssertionError("a save has no forty writes")


def _is_verified(engine: ToyEngine) -> bool:
    """The state is a round of one of the histories, computed anew."""
    reached = {(0, engine.base_checksum)}
    for salt in (1, 2):
        reached |= {(r.server_round, r.checksum) for r in history(6, salt)}
    return (engine.have_round, engine.state.checksum()) in reached


@pytest.fixture
def saver() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, journal_loop.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait(10)


@pytest.mark.slow
def test_killed_at_random_times_it_is_back_at_a_round_of_a_history(
    tmp_path: Path, saver: subprocess.Popen[str]
) -> None:
    assert saver.stdin and saver.stdout
    rng = random.Random(5)
    reached = {}
    for pattern in journal_loop.PATTERNS:
        base = toy_engine(trained_tensors=pattern)
        reached[pattern] = {(0, base.base_checksum)}
        for records in journal_loop.histories(pattern, True):
            reached[pattern] |= {(r.server_round, r.checksum) for r in records}
    rounds = set()
    device = Device(tmp_path / "state")
    device.journal.close()
    for number in range(10 * KILLS):
        if (
            number >= KILLS and len(rounds) > 3
        ):  # on a busy machine a process may be killed before it has saved anything
            break
        print(number, device.folder, file=saver.stdin, flush=True)
        lines = [saver.stdout.readline().strip() for _ in range(2)]  # the child may be faster
        child = int(next(line for line in lines if line != "saving"))
        assert "saving" in lines
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        print("reap", child, file=saver.stdin, flush=True)
        assert int(saver.stdout.readline()) == -signal.SIGKILL

        back = device.restart()
        assert (back.have_round, back.state.checksum()) in reached[back.config.trained_tensors]
        rounds.add(back.have_round)
        device.journal.close()
    assert len(rounds) > 3  # it was not always the base
