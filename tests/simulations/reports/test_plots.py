"""The curve of a run as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simulations.reports import plots
from simulations.reports.plots import can_plot, plot_curve

START = {"payload": {"up": 0, "down": 0}, "loss": 3.0, "wer": 0.5, "utterances": 9}
END = {"payload": {"up": 800, "down": 900}, "loss": 2.0, "wer": 0.4, "utterances": 9}
LOSS_ONLY = {"payload": {"up": 400, "down": 500}, "loss": 2.5}
BAND = {**START, "wer_interval": [0.4, 0.6]}
SUBSET = {**LOSS_ONLY, "wer": 0.3, "utterances": 4}


@pytest.mark.parametrize(
    "curve",
    [[START, END], [START, LOSS_ONLY, END], [START, SUBSET, END], [LOSS_ONLY], [START], [BAND, LOSS_ONLY, BAND]],
    ids=["ends", "loss between", "subset between", "no decoding", "one point", "intervals"],
)
def test_a_png_is_written(tmp_path: Path, curve: list[dict[str, Any]]) -> None:
    path = plot_curve(curve, tmp_path / "curve.png", "a title", devices=2)

    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    assert width > 800 > height > 300
    assert [p.name for p in tmp_path.iterdir()] == ["curve.png"]


def test_without_matplotlib_a_line_says_that_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    console = Console(file=said, width=200)
    assert can_plot(console) and not said.getvalue()

    monkeypatch.setattr(plots, "find_spec", lambda name: None)

    assert not can_plot(console)
    assert said.getvalue() == "no curve.png: it needs matplotlib, which is not installed: pip install matplotlib\n"
