"""The settings page shows every setting, and lint notices one that is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.pages import settings
from zo_common.config.run import SETTINGS


def test_the_committed_page_is_the_generated_one() -> None:
    assert settings.PAGE.read_text() == settings.page()


def test_every_setting_has_one_row() -> None:
    rows = [line for line in settings.page().splitlines() if line.startswith("| `")]

    assert [row.split("`")[1] for row in rows] == [each.key for each in SETTINGS]
    assert all(row.endswith(("| fixed |", "| free |")) for row in rows)


def test_a_page_that_is_out_of_date_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "PAGE", tmp_path / "settings.md")
    monkeypatch.setattr(sys, "argv", ["settings", "--check"])
    with pytest.raises(SystemExit, match=r"run python -m benchmarks\.pages\.settings"):
        settings.main()

    monkeypatch.setattr(sys, "argv", ["settings"])
    settings.main()
    monkeypatch.setattr(sys, "argv", ["settings", "--check"])
    settings.main()
