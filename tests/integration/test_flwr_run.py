"""`flwr run . local` from a copy of the repository: Flower's bundle, SuperLink, simulation engine and log stream."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zo_common.ledger.file import read_ledger
from zo_common.ledger.replay import replay, restore_state
from zo_common.models.load import load_model

ROOT = Path(__file__).parent.parent.parent


def _copy_of_the_repository(target: Path) -> Path:
    """Files that git tracks or would, as somebody who clones it has them; tests are not part of the app."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Flower home and ports of its own; whatever was started with them is ended afterwards."""
    home = tmp_path / "flwr-home"
    http, control = _free_ports(2)
    yield os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": http,
        "FLWR_LOCAL_CONTROL_API_PORT": control,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    _end_processes_of(home)


def _end_processes_of(home: Path) -> None:
    """SuperLink and SuperExec are detached: they are found by the Flower home that only this test gave them."""
    marker = f"FLWR_HOME={home}".encode()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), sign)
            except OSError:
                continue  # it has ended, or is somebody else's
        time.sleep(1)


def _flwr_run(app: Path, settings: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            "flwr", "run", ".", "local", "--stream", "--run-config", settings,
            "--federation-config", "num-supernodes=3 client-resources-num-cpus=1",
        ],
        cwd=app, env=environment, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the detached SuperLink through /proc")
def test_flwr_run_local(environment: dict[str, str], tiny_whisper: Path, mini_corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = f"model='{tiny_whisper}' data='{mini_corpus}' output='{output}' num-server-rounds=2"

    done = _flwr_run(_copy_of_the_repository(tmp_path / "repository"), settings, environment)

    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    ledger = read_ledger(output / "ledger.zo", tolerate_torn=False)
    checksum = ledger.records[-1].checksum
    for word in ("[ROUND 1] 3/3 devices", "[ROUND 2] 3/3 devices", f"checksum {checksum:016x}"):
        assert word in said
    assert "Traceback" not in said
    assert [len(record.contributions) for record in ledger.records] == [3, 3]
    model = load_model(str(tiny_whisper)).model
    assert replay(restore_state(model, ledger.header), ledger) == checksum
    left = {p.name for p in output.iterdir()} - {".lock"}
    lines = {"run.log", "rounds.jsonl", "steps.jsonl", "introductions.jsonl", "settings.jsonl"}
    assert left == lines | {"ledger.zo", "devices.json", "evaluation.json", "model"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the detached SuperLink through /proc")
def test_a_run_that_fails_is_failed_in_flower_and_says_why_last(
    environment: dict[str, str], mini_corpus: Path, tmp_path: Path
) -> None:
    app = _copy_of_the_repository(tmp_path / "repository")
    settings = f"model='/nowhere/model' data='{mini_corpus}' output='{tmp_path / 'out'}'"

    done = _flwr_run(app, settings, environment)
    listed = subprocess.run(
        ["flwr", "list", "local", "--format", "json"],
        cwd=app, env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert "finished:failed" in listed.stdout, listed.stdout + listed.stderr
    assert any(line.startswith("error: model '/nowhere/model' is neither") for line in said), said
    streamed = [line for line in done.stdout.splitlines() if line.strip()]  # Flower's own notes are on stderr
    assert "the run failed: model '/nowhere/model' is neither" in streamed[-1], said
    assert "Traceback" not in done.stdout + done.stderr
