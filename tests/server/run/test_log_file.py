"""The server's messages in the run's folder."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from server.run.log_file import RUN_LOG, log_file


def test_messages_of_all_our_packages_are_lines_with_time_and_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # test runs in several processes send captured messages as UTF-8, which has no lone surrogates
    monkeypatch.setattr(logging.getLogger("server"), "propagate", False)
    for message in ("first", "two\nlines", "a \x1b[31mred\x1b[0m name\udcff"):
        with log_file(tmp_path):
            logging.getLogger("server.rounds.federation").warning(message)
    logging.getLogger("server").warning("after the run")
    with log_file(tmp_path):
        logging.getLogger("zo_common.models").error("of the model")
        logging.getLogger("elsewhere").error("of another package")
    text = (tmp_path / RUN_LOG).read_text(encoding="utf-8")

    lines = text.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING first", lines[0])
    assert lines[1].endswith("WARNING two") and lines[2] == "lines"
    assert "\x1b" not in text and "[31mred" in lines[3]
    assert lines[4].endswith("ERROR of the model") and len(lines) == 5


def test_levels_stay_as_the_program_has_set_them_and_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    logger = logging.getLogger("server")
    before = logger.level, list(logger.handlers)
    with log_file(tmp_path / "gone"):
        logger.warning("lost")
        assert logger.level == before[0]
    assert (logger.level, logger.handlers) == before
    assert not (tmp_path / "gone").exists()
