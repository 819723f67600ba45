"""`zo-asr-sim` as a program: whatever a user gets wrong is one sentence or list on stderr and a failing exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from simulations import cli
from zo_common.config.run import RunConfig

Outcome = tuple[int, str, str]
SETTINGS = {
    "epsilon": ["--set", "epsilon=1e-9"],  # found by the server
    "audio": ["--set", "data=broken", "--set", "min-clients=2"],  # found by a device
}


def _write_scenario(folder: Path, config: RunConfig) -> None:
    (folder / "small.toml").write_text(
        '[simulation]\ndevices = 2\nactors = 1\n[run]\npartition-by = "iid"\nnum-queries = 2\nnum-server-rounds = 1\n'
        f"model = '{config.model}'\ndata = '{config.data}'\n"
    )


def _run(folder: Path, *arguments: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {}


@pytest.fixture
def outcome(
    outcomes: dict[str, Outcome],
    settings: Callable[..., RunConfig],
    mini_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Outcome]:
    """What each wrong setting of one small scenario gives, two at a time, in Flower's real simulation engine."""
    if not outcomes:
        folder = tmp_path_factory.mktemp("cli")
        shutil.copytree(mini_corpus, folder / "broken")
        (folder / "broken" / "train" / "ben1.wav").write_bytes(b"not audio")
        _write_scenario(folder, settings())
        with ThreadPoolExecutor(2) as pool:
            started = {
                name: pool.submit(_run, folder, "run", "small.toml", "--output", f"out-{name}", *arguments)
                for name, arguments in SETTINGS.items()
            }
            outcomes |= {name: future.result() for name, future in started.items()}
        assert not list(folder.glob("out-*/ledger.zo"))
    return outcomes


def _error(outcome: Outcome) -> list[str]:
    """The lines of the error, after what every user error must fulfil."""
    status, said, error = outcome
    assert status == 1
    assert "Traceback" not in said + error
    lines = [line for line in error.splitlines() if line.strip()]
    assert lines[0].startswith("error: "), error
    return lines


def test_a_typing_error_in_a_setting(tmp_path: Path) -> None:
    lines = _error(_run(tmp_path, "demo", "--set", "lerning-rate=1"))

    assert lines == ["error: unknown setting 'lerning-rate': did you mean 'learning-rate'?"]
    assert not list(tmp_path.iterdir())  # it is found before speech is synthesised


def test_a_scenario_that_is_not_there(tmp_path: Path) -> None:
    (line,) = _error(_run(tmp_path, "run", "nothing.toml"))

    assert "scenario nothing.toml cannot be read" in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trained-tensors=encodr-early", ("'encodr-early' matches none", "did you mean 'encoder-early'")),
        ("device=nonsense", ("device 'nonsense' cannot be used", "use auto, cpu, cuda")),
        ("model=/nowhere/model", ("model '/nowhere/model' is neither a local directory nor a hub id",)),
        ("data=/nowhere/speech", ("error: '/nowhere/speech' is not there, expected a folder with metadata.csv",)),
    ],
)
def test_what_the_run_itself_finds(
    settings: Callable[..., RunConfig],
    in_memory: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    words: tuple[str, ...],
) -> None:
    """In this process, without Ray, to save time; `TestInTheSimulationEngine` shows that Ray changes nothing."""
    _write_scenario(tmp_path, settings())
    arguments = ["run", "small.toml", "--output", "out", "--set", setting]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zo-asr-sim", *arguments])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    said = capsys.readouterr()
    lines = _error((int(ended.value.code or 0), said.out, said.err))
    for word in words:
        assert word in "\n".join(lines)


@pytest.mark.slow
class TestInTheSimulationEngine:
    def test_epsilon_below_the_grid(self, outcome: dict[str, Outcome]) -> None:
        (line,) = _error(outcome["epsilon"])

        assert "epsilon 1e-09 rounds to zero grid units" in line
        assert "the least legal epsilon" in line

    def test_corrupt_audio_is_listed_with_its_row(self, outcome: dict[str, Outcome]) -> None:
        lines = _error(outcome["audio"])

        assert lines[0].startswith("error: the data must be corrected before training starts (skip-bad=true")
        assert "ben1.wav" in lines[-1]
        assert "train/metadata.csv:6" in lines[-1]


def test_a_run_that_came_to_nothing_exits_1_after_its_table(
    settings: Callable[..., RunConfig],
    in_memory: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every look is worse than the one before."""
    looks = iter(range(99))
    monkeypatch.setattr("server.guards.held_out_guard.utterance_losses", lambda *_: np.full(3, 1.0 + next(looks)))
    _write_scenario(tmp_path, settings())
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "small.toml", "--output", "out", "--set", "guard-split=test"]
    monkeypatch.setattr(sys, "argv", ["zo-asr-sim", *arguments])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    said, error = capsys.readouterr()
    assert ended.value.code == 1
    assert error.startswith("error: no round made the model better on the guard's speech, the base model is exported")
    assert "no round made the model better" in " ".join(said.split()) and "ledger = adapted model" in said
    assert json.loads((tmp_path / "out" / "result.json").read_text())["guard"]["taken_back"] == [[1, 1]]
    assert (tmp_path / "out" / "model" / "config.json").exists()
