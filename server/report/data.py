"""Everything that a report shows, read from a run's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.report.chart import Chart, Line, SlopeChart, line_chart, slope_chart
from server.report.transcripts import Example, examples
from server.report.words import WordChange, changed_words
from server.run.evaluations import read_counts, read_transcripts
from server.run.log import AFTER, BEFORE, EVALUATION, ON_DEVICES
from server.watch.json_files import JsonTable
from server.watch.run_folder import RunFolder, RunNow
from zo_common.errors import ConfigError
from zo_common.speech.comparison import rate_interval

Rows = list[dict[str, Any]]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Report:
    """A run's report.

    Attributes:
        evaluation: the run's evaluation.json.
        curves: loss and error rate over rounds, where they were measured.
        slopes: a chart for each column that groups the held-out split, that of the speakers first.
        mended, broken: words; empty where transcripts are the devices' own.
        transcripts: chosen ones, before and after.
    """

    run: RunNow
    evaluation: Mapping[str, Any]
    curves: Sequence[Chart]
    slopes: Sequence[SlopeChart]
    mended: Sequence[WordChange] = field(default_factory=list)
    broken: Sequence[WordChange] = field(default_factory=list)
    transcripts: Sequence[Example] = field(default_factory=list)


def read_report(folder: Path, most_transcripts: int = 12) -> Report:
    """Read a run's folder.

    Raises:
        ConfigError: no run has ended there.
    """
    run = RunFolder(folder).read()
    evaluation = JsonTable(folder / EVALUATION).read()
    if not evaluation:
        raise ConfigError(f"{folder} has no {EVALUATION}, which a run writes at its end: name the output of such a run")
    language = str(run.settings.get("language", "en"))
    before, after = _transcripts(folder) if most_transcripts else ([], [])
    mended, broken = changed_words(before, after, language)
    return Report(
        run,
        evaluation,
        [chart for chart in (_loss(run), _rate(run, intervals(folder))) if chart is not None],
        _slopes(evaluation, str(run.settings.get("partition-by", "speaker"))),
        mended,
        broken,
        examples(before, after, language, most_transcripts),
    )


def _transcripts(folder: Path) -> tuple[Rows, Rows]:
    """Return the server's transcripts before and after; none where they are not of the same utterances."""
    before, after = (read_transcripts(folder / name) for name in (BEFORE, AFTER))
    same = [row["where"] for row in before] == [row["where"] for row in after]
    return (before, after) if same else ([], [])


def intervals(folder: Path) -> tuple[Interval, Interval] | None:
    """Return the intervals of the error rate at the first and the last evaluation of the whole split, or None.

    Utterances are resampled, or the devices that evaluate on their own speech.
    """
    ends = [
        rate_interval(read_counts(folder / name) or read_counts(folder / ON_DEVICES[name])) for name in (BEFORE, AFTER)
    ]
    return (ends[0], ends[1]) if ends[0] and ends[1] else None


def band_of(
    rows: Sequence[Mapping[str, Any]], rate: str, ends: tuple[Interval, Interval] | None
) -> list[tuple[int, Interval]]:
    """Return places in `rows` and the rate's interval there: that of each evaluation, or else those of the two ends.

    Args:
        rows: two or more evaluations of the whole split; fewer have no band.
        ends: intervals for rows of runs that measured none.
    """
    if len(rows) < 2:
        return []
    own = [(place, found) for place, row in enumerate(rows) if (found := _interval(row.get(f"{rate}_interval")))]
    if len(own) == len(rows):
        return own
    return [(0, ends[0]), (len(rows) - 1, ends[1])] if ends else []


def _interval(found: Any) -> Interval | None:
    if not isinstance(found, (list, tuple)) or len(found) != 2:
        return None
    ends = [float(end) for end in found if isinstance(end, (int, float)) and math.isfinite(end)]
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _loss(run: RunNow) -> Chart | None:
    train = [(row["server_round"], row["loss"]) for row in run.rounds if row.get("loss") is not None]
    held_out = [(row["server_round"], row["loss"]) for row in run.curve if row.get("loss") is not None]
    checks = [(row["server_round"], row["loss"]) for row in run.checks if row.get("loss") is not None]
    lines = [Line("train", train), Line("guard", checks, dots=True), Line("held", held_out, dots=True)]
    return line_chart("Loss, nats a token or character", "round", lines, lambda loss: f"{loss:.2f}")


def _rate(run: RunNow, ends: tuple[Interval, Interval] | None) -> Chart | None:
    """Only evaluations of the whole split compare."""
    name = next((row["headline"] for row in run.curve if "headline" in row), "wer")
    rows = [row for row in run.curve if name in row]
    most = max((row.get("utterances", 0) for row in rows), default=0)
    whole = [row for row in rows if row.get("utterances", 0) == most]
    points = [(row["server_round"], row[name]) for row in whole]
    band = [(whole[place]["server_round"], *interval) for place, interval in band_of(whole, name, ends)]
    title = f"{name.upper()} on {most} held-out utterances"
    line = Line("held", points, dots=True, band=band)
    return line_chart(title, "round", [line], lambda rate: f"{100 * rate:.0f}%", from_zero=True)


def _slopes(evaluation: Mapping[str, Any], speaker: str) -> list[SlopeChart]:
    comparison = evaluation.get("comparison") or {"groups": {}}
    columns = sorted(comparison["groups"], key=lambda name: (name != speaker, name))
    return [
        slope_chart(
            f"{comparison['metric'].upper()} by {column}",
            [(each["value"] or "not given", each["before"], each["after"]) for each in comparison["groups"][column]],
        )
        for column in columns
    ]
