"""The report of a run: numbers, charts and texts of its files, in one file that loads nothing."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.harness.run_files import RunFiles
from server.report.chart import Line, line_chart, slope_chart, ticks
from server.report.cli import app
from server.report.data import band_of, intervals, read_report
from server.report.page import render
from zo_common.errors import ConfigError
from zo_common.speech.comparison import rate_interval

SPEECH = [
    ("anna", "the bath is full", "the birth is full", "the bath is full"),
    ("anna", "a cup of tea", "a cup of tea", "a cup of tea"),
    ("ben", "grass and glass", "gross and glass", "grass and glass"),
    ("ben", "take the path", "take the path", "take the bath"),
]


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    """A finished run with transcripts of two speakers."""
    made = RunFiles(tmp_path / "dialect")
    made.evaluation(0, 0.2, 2.5)
    made.round(refused={"late": 1})
    made.round()
    made.evaluation(2, 0.1, 2.25)
    made.transcripts(SPEECH)
    made.end()
    return made


class _Tags(HTMLParser):
    """Collects the tags of a page, and checks that they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    found = _Tags()
    found.feed(text)
    assert found.open == []
    return found.seen


def test_the_page_stands_alone_and_has_the_runs_numbers(run: RunFiles) -> None:
    text = render(read_report(run.folder))
    tags = _tags(text)
    result = json.loads((run.folder / "evaluation.json").read_text())["comparison"]

    assert not [tag for tag, attributes in tags if tag in ("script", "img", "link", "iframe") or "src" in attributes]
    assert not re.search(r"https?://", text)
    assert f"WER {result['before']:.1%} → {result['after']:.1%}" in text and "dialect" in text
    assert sum(tag == "svg" for tag, _ in tags) == 3  # loss, rate, speakers
    assert "the answer came after its round had closed" in text
    assert run.log.rows[-1]["checksum"] in text
    assert ">bath</td><td>1 of 1</td>" in text and "<mark>birth</mark>" in text
    assert 'class="band held"' in text and "The band joins" in text


def test_texts_of_devices_and_speakers_are_escaped(run: RunFiles) -> None:
    evil = "<script>alert(1)</script>"
    run.transcripts([(evil, f"{evil} one", "two", "three"), *SPEECH * 2, (evil, "one", "one", "two")])
    run.round(refused={evil: 1})
    run.end(verdict=evil)
    tags = _tags(render(read_report(run.folder)))

    assert "script" not in {tag for tag, _ in tags}


def test_without_texts_no_word_of_the_speech_is_on_the_page(run: RunFiles) -> None:
    report = read_report(run.folder, 0)

    assert not report.transcripts and not report.mended
    assert not re.search(r"\b(bath|birth|grass)\b", render(report))


def test_a_run_whose_devices_evaluate_has_no_transcripts_and_says_so(run: RunFiles) -> None:
    for name in ("before", "after"):
        path = run.folder / f"transcripts-{name}.jsonl"
        path.rename(run.folder / f"devices-{name}.jsonl")
    settings = {"settings": {**run.settings, "evaluate-on": "clients"}}
    (run.folder / "settings.jsonl").write_text(json.dumps(settings) + "\n")
    report = read_report(run.folder)

    assert not report.transcripts and report.curves[1].bands
    assert "transcripts did not leave them" in render(report)


def test_a_run_without_any_evaluation_has_a_page(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run", privacy="example", target_epsilon=8.0)
    run.round(loss=None, epsilon_spent=1.25)
    run.end(verdict="no round had a valid reply")
    text = render(read_report(run.folder))

    assert "no round had a valid reply" in text and "ε 1.25 of 8" in text and "<svg" not in text
    with pytest.raises(ConfigError, match="which a run writes at its end"):
        read_report(tmp_path)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_losses_that_are_no_numbers_are_left_out_of_the_charts(tmp_path: Path, loss: float) -> None:
    run = RunFiles(tmp_path / "run")
    run.evaluation(0, 0.2, 2.5)
    run.round(loss=loss)
    run.round(loss=2.0)
    run.evaluation(2, math.nan, loss)
    run.end()
    report = read_report(run.folder)

    assert [len(chart.dots) for chart in report.curves] == [1, 1]
    assert "NaN" not in render(report).split("<body>")[1].split("<h2>Curve</h2>")[1].split("</svg>")[0]


def test_intervals_are_of_the_first_and_the_last_evaluation(run: RunFiles, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"errors": n % 3, "units": 10} for n in range(60)]
    found = intervals(run.folder)
    low, high = rate_interval(rows) or (0.0, 0.0)

    assert found is not None and found[0][0] <= 2 / 14 <= found[0][1]
    assert 0 < low < 0.1 < high < 0.2
    assert rate_interval(rows[:1]) is None and intervals(tmp_path) is None


def test_a_band_is_of_each_evaluations_own_interval_where_all_have_one() -> None:
    rows: list[dict[str, Any]] = [{"wer": 0.2, "wer_interval": [0.1, 0.3 + place / 10]} for place in range(3)]
    ends = ((0.0, 1.0), (0.0, 0.9))

    assert band_of(rows, "wer", None) == [(place, (0.1, 0.3 + place / 10)) for place in range(3)]
    assert band_of(rows[:1], "wer", ends) == []
    for damaged in (None, [0.1], ["a", "b"], [0.1, math.nan], "ab"):
        rows[1]["wer_interval"] = damaged
        assert band_of(rows, "wer", ends) == [(0, ends[0]), (2, ends[1])] and band_of(rows, "wer", None) == []


def test_charts_are_within_their_boxes() -> None:
    chart = line_chart("t", "round", [Line("held", [(0, 3.0), (10, 1.0)], True, [(0, 2.5, 3.5), (10, 0.5, 1.5)])], str)
    assert chart is not None and line_chart("t", "round", [Line("held", [])], str) is None
    places = [float(each) for _, data in chart.paths + chart.bands for each in re.findall(r"-?[\d.]+", data)]
    assert all(0 <= place <= chart.width for place in places)
    assert [label for _, label in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])

    slopes = slope_chart("t", [(f"s{number}", 0.3, 0.1 + number / 1000) for number in range(40)])
    for labels in ([each.label_before for each in slopes.slopes], [each.label_after for each in slopes.slopes]):
        ordered = sorted(labels)
        assert all(after - before >= 12.9 for before, after in zip(ordered, ordered[1:], strict=False))
        assert ordered[0] > 0 and ordered[-1] <= slopes.height


def test_the_command_writes_a_file_for_its_owner(run: RunFiles) -> None:
    done = CliRunner().invoke(app, [str(run.folder), "--json"])

    path = run.folder / "report.html"
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == {"report": str(path), "bytes": path.stat().st_size, "transcripts": 3}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_report_that_others_could_read_is_the_owners_again(run: RunFiles) -> None:
    path = run.folder / "report.html"
    path.touch(mode=0o644)
    assert CliRunner().invoke(app, [str(run.folder)]).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size > 1000


def test_names_that_are_no_text_are_shown_escaped(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / os.fsdecode(b"run-\xff"), model="model-\udcff")
    run.round()
    run.end()
    done = CliRunner().invoke(app, [str(run.folder), "--output", str(tmp_path / "report.html")])

    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>run-\\xff</h1>" in page and "model-\\udcff" in page
