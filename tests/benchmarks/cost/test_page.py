"""The live page's cost: what is sent, of a run that never was."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cost import page


def test_a_round_is_sent_in_fewer_bytes_than_all(tmp_path: Path) -> None:
    first, each = page.sent(page.made_up(tmp_path / "large", 40, 30))
    small_first, small_each = page.sent(page.made_up(tmp_path / "small", 4, 3))

    assert 0 < small_each < each < first
    assert small_first < first
