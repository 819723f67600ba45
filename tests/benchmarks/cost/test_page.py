"""The live page's cost: what is sent, of a run that never was."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cost import page
from benchmarks.harness.browser import browser, chromium_path
from benchmarks.harness.served_page import served


def test_a_round_is_sent_in_fewer_bytes_than_all(tmp_path: Path) -> None:
    first, each = page.sent(page.made_up(tmp_path / "large", 40, 30))
    small_first, small_each = page.sent(page.made_up(tmp_path / "small", 4, 3))

    assert 0 < small_each < each < first
    assert small_first < first


@pytest.mark.slow
@pytest.mark.skipif(not chromium_path(), reason="no Chromium is installed: apt-get install chromium")
def test_rounds_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    run = page.made_up(tmp_path / "run", 4, 3)
    with browser() as chromium, served(run.folder) as address:
        found = page.drawn(chromium.new_page(), address, run, 2)

    assert len(found) == 2 and min(found) > 0
