"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports huggingface_hub, which reads it once: no test needs, or may use, the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell starts what it puts in the background deaf to SIGINT, and so would be all processes of the tests.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `benchmarks` is no installed package, and helpers that several folders of tests share are modules there.
sys.path.append(str(Path(__file__).parent.parent))
sys.path.append(str(Path(__file__).parent / "helpers"))

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(scope="session")
def whisper_dir() -> Path:
    """Whisper tiny.en as a `transformers` directory, converted once and kept between test runs."""
    from simulations.models.whisper_import import bundled_whisper

    return bundled_whisper(MODELS)


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """What a test listens to ends with it."""
    from listening import stop_listening

    yield
    stop_listening()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and how to run it."""
    if config.getoption("markexpr") == "not slow":
        terminalreporter.write_line("Left out: tests marked slow (deployments, whole runs). All of them: make test-all")
