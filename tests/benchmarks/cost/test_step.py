"""Which sides of a step are compared, and which comparisons have a target."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from benchmarks.cost import step

NAMES = ("forwards", "ours", "chosen", "plain", "plain_in_place")
ARGUMENTS = argparse.Namespace(device="cpu", batch=2, queries=8, repeats=2, plain_repeats=3, precisions=["float32"])


def _measure(monkeypatch: pytest.MonkeyPatch, precision: str, chosen: str) -> tuple[list[dict[str, Any]], list[str]]:
    called: list[str] = []
    sides = {name: lambda name=name: called.append(name) for name in NAMES}
    monkeypatch.setattr(step, "make_sides", lambda *_: sides)
    monkeypatch.setattr(step, "resolve_precision", lambda *_: chosen)
    return step.measure(None, "all", precision, ARGUMENTS), called


def test_only_comparisons_in_one_precision_have_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, called = _measure(monkeypatch, "float32", "bfloat16")
    targets = {entry["row"]: (entry.get("at_most"), entry.get("at_least")) for entry in rows}
    assert targets == {
        "ZO step ÷ its 16 forwards, all, float32": (1.1, None),
        "MeZO and ZO-ASR as published ÷ ours, all, float32": (None, 1.3),
        "the same in place ÷ ours, all, float32": (None, None),
        "MeZO and ZO-ASR as published in float32 ÷ ours as devices run it (bfloat16), all": (None, None),
    }
    # every side once for nothing, then as often as asked for
    assert [called.count(name) for name in NAMES] == [3, 3 + 4, 4, 4, 4]


def test_a_chosen_precision_that_was_not_asked_for_has_no_plain_side(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, called = _measure(monkeypatch, "bfloat16", "bfloat16")
    assert [(entry["row"], entry["at_most"]) for entry in rows] == [("ZO step ÷ its 16 forwards, all, bfloat16", 1.1)]
    assert set(called) == {"forwards", "ours"}


def test_in_the_chosen_precision_nothing_is_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, called = _measure(monkeypatch, "float32", "float32")
    assert len(rows) == 3 and "chosen" not in called
