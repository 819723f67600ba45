"""The commands page shows every command, and lint notices one that is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.pages import commands
from zo_common.command import GROUPS


def test_every_group_has_a_part_and_arguments_are_explained() -> None:
    page = commands.page()

    assert [line.split()[-1] for line in page.splitlines() if line.startswith("## ")] == list(GROUPS)
    assert "### zo-asr server resume" in page
    assert "    zo-asr adapt [OPTIONS] AUDIO...\n" in page and "adapt adapt" not in page
    assert "| `DIR` | The deployment folder. [required] |" in page
    assert "--help` |" not in page


def test_a_page_that_is_out_of_date_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "PAGE", tmp_path / "commands.md")
    monkeypatch.setattr(commands, "page", lambda: "made\n")
    monkeypatch.setattr(sys, "argv", ["commands", "--check"])
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.pages\.commands"):
        commands.main()

    monkeypatch.setattr(sys, "argv", ["commands"])
    commands.main()
    monkeypatch.setattr(sys, "argv", ["commands", "--check"])
    commands.main()
