"""Who sees what our loggers say."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from listening import listen

from zo_common.console import PACKAGES, LineHandler, hushed, shown

LOGGER = logging.getLogger("server.devices.roster")


def test_a_library_is_quiet_also_of_warnings() -> None:
    code = (
        "import importlib, logging\n"
        f"for name in {PACKAGES}:\n"
        "    importlib.import_module(name)\n"
        "    logging.getLogger(f'{name}.part').error('something')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_messages_are_shown_for_the_time_of_a_block() -> None:
    heard: list[str] = []
    LOGGER.warning("before")
    with shown(LineHandler(heard.append)):
        LOGGER.info("one")
        LOGGER.debug("detail")
        LOGGER.warning("two\nthree")
    LOGGER.warning("after")

    assert heard == ["one", "two\nthree"]
    assert all(logging.getLogger(name).level == logging.NOTSET for name in PACKAGES)


def test_a_program_that_wants_details_keeps_them() -> None:
    heard: list[str] = []
    logging.getLogger("server").setLevel(logging.DEBUG)
    try:
        with shown(LineHandler(heard.append)):
            LOGGER.debug("detail")
    finally:
        logging.getLogger("server").setLevel(logging.NOTSET)
    assert heard == ["detail"]


def test_a_check_says_nothing() -> None:
    heard = listen("server")
    with hushed("server"):
        LOGGER.warning("one")
    LOGGER.warning("two")
    assert heard == ["two"]


def test_a_console_that_cannot_be_written_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def full(word: str) -> None:
        raise OSError(28, "No space left on device")

    with shown(LineHandler(full)):
        LOGGER.warning("one")
    assert "No space left on device" in capsys.readouterr().err


def test_an_exception_comes_with_its_traceback() -> None:
    heard = listen("client")
    try:
        raise ValueError("what it was")
    except ValueError:
        logging.getLogger("client.worker").exception("training failed")
    (word,) = heard
    assert word.startswith("training failed\nTraceback") and word.endswith("ValueError: what it was")
