"""Stored commands."""

from __future__ import annotations

import sys

import pytest

from benchmarks.harness.command import PLACES, command, without_places


def test_a_stored_command_says_nothing_of_where_files_lie() -> None:
    given = ["--tasks", "wm", "ru", "--models", "/a", "--seeds", "0", "1", "--rows", "/b", "--work=/c", "--forgetting"]

    assert without_places(given, (*PLACES, "--models")) == ["--tasks", "wm", "ru", "--seeds", "0", "1", "--forgetting"]


def test_what_is_measured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--models", "models/tiny", "models/base", "--folder", "/somewhere"])

    assert command("benchmarks.learning.memory") == (
        "python -m benchmarks.learning.memory --models models/tiny models/base"
    )
