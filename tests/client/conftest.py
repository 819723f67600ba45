"""The tiny federation's fixtures, and a resident worker's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import *  # noqa: F403
from worker_process import Forks, Truth, Worker

from zo_common.config.run import RunConfig


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


@pytest.fixture
def worker(forks: Forks, settings: Callable[..., RunConfig]) -> Iterator[Worker]:
    """Not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="zo"))
    made = Worker(forks, folder, settings(eval_split="test", precision="float32"))
    yield made
    if made.pid and made.wait(0.01) is None:
        made.kill()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_truth() -> dict[str, Truth]:
    return {}


@pytest.fixture
def truth(shared_truth: dict[str, Truth], worker: Worker) -> Truth:
    if not shared_truth:
        shared_truth["tiny"] = Truth(worker.config)
    return shared_truth["tiny"]
