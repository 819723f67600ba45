"""The bar: after two seconds, on a terminal alone, and out of the way of what is printed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from zo_common.bar import Bar


def _bar(monkeypatch: pytest.MonkeyPatch, seconds: float, *, terminal: bool = True) -> tuple[Bar, Any]:
    """A bar of work that began so many seconds ago."""
    out = io.StringIO()
    bar = Bar("", 10, Console(file=out, force_terminal=terminal, width=80))
    now = bar._started + seconds
    monkeypatch.setattr("zo_common.bar.time.monotonic", lambda: now)
    return bar, out


def test_it_appears_after_two_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bar, out = _bar(monkeypatch, 2.1)
    with bar:
        bar.at(5, what="a.wav")
        assert bar.drawn
        with bar.aside():
            print("a line")

    assert "a.wav" in out.getvalue()
    assert "50 %" in out.getvalue()
    assert capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize(("seconds", "terminal"), [(1.9, True), (9.0, False)])
def test_not_before_and_not_into_a_file(monkeypatch: pytest.MonkeyPatch, seconds: float, terminal: bool) -> None:
    bar, out = _bar(monkeypatch, seconds, terminal=terminal)
    with bar:
        bar.at(5, what="a.wav")

    assert (bar.drawn, out.getvalue().strip()) == (False, "")


def test_a_part_of_the_work_follows_what_was_done_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, out = _bar(monkeypatch, 2.1)
    with bar:
        bar.after(6)(2, 4)

    assert "80 %" in out.getvalue()
