"""Fixtures of the federation's tests, loaded by the `conftest.py` of the folders that use them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid, Memory
from listening import listen
from tiny_ctc import write_tiny_ctc

from client.device.engine import Engine
from client.device.warm import warm_dataset
from server.devices.enrolment import Enrolment
from server.rounds.federation import LEDGER_NAME, Events, Federation
from server.run.log import RoundReport
from simulations.models.tiny import write_mini_corpus, write_tiny_whisper
from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.speech.recordings import Recordings

Settings = Callable[..., RunConfig]
OWN = Enrolment(own_devices=True)


@pytest.fixture(scope="session")
def tiny_whisper(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper of two layers with the real feature extractor and few text tokens."""
    return write_tiny_whisper(whisper_dir, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_whisper(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_whisper`, with other weights."""
    return write_tiny_whisper(whisper_dir, tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def tiny_wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Wav2Vec2 of two layers with capitals to write."""
    return write_tiny_ctc(tmp_path_factory.mktemp("models") / "ctc")


@pytest.fixture(scope="session")
def mini_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three train speakers and one test speaker with three short recordings each."""
    return write_mini_corpus(tmp_path_factory.mktemp("corpus") / "mini")


@pytest.fixture
def settings(tiny_whisper: Path, mini_corpus: Path, tmp_path: Path) -> Settings:
    """Run settings of the tiny federation; keyword arguments change some."""

    def make(**changes: Any) -> RunConfig:
        return RunConfig(
            **{
                "model": str(tiny_whisper),
                "data": str(mini_corpus),
                "num_queries": 2,
                "batch_size": 2,
                "local_steps": 2,
                "learning_rate": 0.05,
                "epsilon": 1e-3,
                "loss_check": False,  # tones and random weights have little but noise
                "num_server_rounds": 3,
                "round_timeout": 20.0,
                "output": str(tmp_path / "run"),
                **changes,
            }
        )

    return make


@pytest.fixture
def ctc_settings(settings: Settings, tiny_wav2vec2: Path) -> Settings:
    """Run settings of a tiny federation on a CTC model; keyword arguments change some."""
    model = {
        "model": str(tiny_wav2vec2),
        "trained_tensors": "norms+features",
        "eval_split": "test",
        "learning_rate": 1e-3,
    }
    return lambda **changes: settings(**{**model, **changes})


@pytest.fixture(scope="session")
def untold_corpus(mini_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini corpus without transcripts of the train split: there is no such column."""
    target = tmp_path_factory.mktemp("corpus") / "untold"
    shutil.copytree(mini_corpus, target)
    table = target / "train" / "metadata.csv"
    with table.open(newline="") as file:
        rows = [(name, speaker) for name, _, speaker in csv.reader(file)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return target


@pytest.fixture(scope="session")
def memories() -> list[Memory]:
    """What three devices keep warm; the grid takes every one back to the base model before it is used."""
    return [Memory() for _ in range(3)]


@pytest.fixture
def grid_of(memories: list[Memory]) -> Callable[..., FakeGrid]:
    """Builds a grid of virtual devices for a run's settings."""

    def make(config: RunConfig, devices: int = 3) -> FakeGrid:
        return FakeGrid(config, memories[:devices])

    return make


class Observed:
    """What a federation said and reported."""

    def __init__(self) -> None:
        self.words = listen("server")
        self.reports: list[RoundReport] = []
        self.events = Events(on_round=self.reports.append)

    @property
    def text(self) -> str:
        """All words."""
        return "\n".join(self.words)


@pytest.fixture
def observed() -> Observed:
    """Collects a federation's words and reports."""
    return Observed()


@pytest.fixture
def federate(grid_of: Callable[..., FakeGrid], observed: Observed) -> Callable[..., Federation]:
    """Runs a federation on the fake grid to its end."""

    def run(config: RunConfig, grid: FakeGrid | None = None, enrolment: Enrolment | None = OWN) -> Federation:
        federation = Federation(config, grid or grid_of(config), observed.events, enrolment=enrolment)
        federation.run()
        return federation

    return run


@pytest.fixture
def ledger_of() -> Callable[[RunConfig], Ledger]:
    """Reads the ledger of a run, refusing a torn end."""
    return lambda config: read_ledger(Path(config.output) / LEDGER_NAME, tolerate_torn=False)


@pytest.fixture
def engine_of(settings: Settings) -> Callable[..., Engine]:
    """A device's engine of its own, for settings that differ from the tiny federation's in the given ones."""
    return lambda **changes: Engine(settings(**changes))


@pytest.fixture
def speech_of(settings: Settings) -> Callable[[Engine], Recordings]:
    """The whole train split for an engine."""
    return lambda engine: warm_dataset(settings(), engine, None, 1)
