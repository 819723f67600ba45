"""A task for seconds: a random CTC model of two layers and recordings of tones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_ctc import write_tiny_ctc

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.tasks import Task
from simulations.models.tiny import write_mini_corpus, write_tiny_whisper


def _with_dev(corpus: Path) -> str:
    shutil.copytree(corpus / "test", corpus / "dev")
    return str(corpus)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("ctc")
    return Task("tones", str(write_tiny_ctc(folder / "model")), _with_dev(write_mini_corpus(folder / "corpus")))


@pytest.fixture(scope="session")
def whisper_task(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("whisper")
    model = write_tiny_whisper(whisper_dir, folder / "model")
    return Task("tones", str(model), _with_dev(write_mini_corpus(folder / "corpus")))


@pytest.fixture
def crowd(task: Task) -> Crowd:
    return Crowd(task, 3)


@pytest.fixture
def whisper_crowd(whisper_task: Task) -> Crowd:
    return Crowd(whisper_task, 3)
