"""The tutorial of a private run shows what the plan prints, and settings near it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.commands.privacy import app

PAGE = Path(__file__).parent.parent.parent / "docs" / "tutorials" / "private-run.md"


@pytest.mark.parametrize("level", ["example", "device"])
def test_the_page_follows_the_plan(level: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (command,) = re.findall(r"zo-asr privacy (plan --epsilon.*)", page)

    done = CliRunner().invoke(app, [*shlex.split(command), "--level", level], env={"COLUMNS": "100"})

    assert done.exit_code == 0, done.output
    printed = done.output
    (usual,) = (float(norm) for norm in re.findall(r"usual norm ([\d.]+)", printed))
    settings = dict(re.findall(r'privacy = "(\w+)"[^`]*?clip-norm = ([\d.]+)', page))
    assert float(settings[level]) == pytest.approx(usual, rel=0.02)
    if level == "example":
        table = [line for line in printed.splitlines() if line.startswith("│")][:9]
        assert [line.strip() for line in page.splitlines() if line.startswith("    │")] == table
