"""Choosing learning rates, rows that are kept, and the tables made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.result_cache import ResultCache
from benchmarks.learning import report, sweep
from benchmarks.learning.learn import Budget
from benchmarks.learning.methods import METHODS, STUDIES, Entry
from benchmarks.learning.sweep import Lab, choose_rate, chosen, parser
from benchmarks.learning.tasks import TASKS, TITLES, Places, Task, task_of
from zo_common.errors import ConfigError


class TestChooseRate:
    def _asked(self, rates: tuple[float, ...], best: float) -> tuple[float, list[float]]:
        asked: list[float] = []

        def loss(rate: float) -> float:
            asked.append(rate)
            return abs(rate - best)

        return choose_rate(rates, loss), asked

    def test_a_best_rate_inside_the_grid_is_taken(self) -> None:
        assert self._asked((1e-3, 2e-3, 4e-3), 2e-3) == (2e-3, [1e-3, 2e-3, 4e-3])

    def test_a_best_rate_at_the_edge_is_compared_with_the_next_beyond(self) -> None:
        assert self._asked((1e-3, 2e-3, 4e-3), 8e-3) == (8e-3, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
        assert self._asked((1e-3, 1e-2), 1e-9)[1] == [1e-3, 1e-2, 1e-4, 1e-5]

    def test_runs_that_ended_early_lose(self) -> None:
        assert choose_rate((1.0, 2.0), lambda rate: float("inf") if rate > 1 else 3.0) == 1.0

    def test_one_rate_is_no_choice(self) -> None:
        assert self._asked((5.0,), 1.0) == (5.0, [5.0])


class TestLab:
    def _lab(self, tmp_path: Path) -> Lab:
        budget = Budget(48, points=1, test_utterances=2)
        return Lab(ResultCache(tmp_path / "rows.jsonl"), Places(), budget, tmp_path / "work", 0, False)

    def test_a_row_has_all_that_a_table_needs_and_is_measured_once(
        self, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        entry = METHODS["bias-swept"]
        small = replace(entry.settings, queries=2, batch_size=2, devices=3, epsilon=1e-2)
        entry = replace(entry, settings=small, rates=(1e-3, 1e-2))

        rows = self._lab(tmp_path).row(task, entry, (0, 1))

        assert [r["seed"] for r in rows] == [0, 1] and len({r["learning_rate"] for r in rows}) == 1
        row = rows[0]
        assert (row["forwards"], row["rounds"], row["ended"]) == (48, 4, "")
        assert row["before"]["utterances"] == row["after"]["utterances"] == 2
        assert sum(row["after"]["errors"]) / sum(row["after"]["units"]) == pytest.approx(row["after"]["wer"])
        assert row["curve"][0][0] == 0 and row["curve"][-1][0] == 48
        assert row["command"].startswith("python -m benchmarks.learning") and row["hardware"]["cores"] >= 1
        assert list((tmp_path / "work").glob("*.pt")) == []
        monkeypatch.setattr(sweep, "learn", lambda *_: pytest.fail("measured a second time"))
        assert self._lab(tmp_path).row(task, entry, (0, 1)) == rows

    def test_another_number_of_devices_measures_as_many_directions(self, task: Task, tmp_path: Path) -> None:
        entry = Entry("x", METHODS["bias-swept"].make, replace(METHODS["bias-swept"].settings, learning_rate=1e-3))
        entry = replace(entry, settings=replace(entry.settings, devices=3, queries=2, batch_size=2))

        (row,) = self._lab(tmp_path).row(task, entry, (0,), 1)

        assert (row["devices"], row["queries"]) == (1, 6)

    def test_with_a_measured_step_a_device_alone_measures_as_many_directions_as_one_of_many(
        self, task: Task, tmp_path: Path
    ) -> None:
        small = replace(METHODS["auto"].settings, devices=3, queries=2, batch_size=2)

        (row,) = self._lab(tmp_path).row(task, replace(METHODS["auto"], settings=small), (0,), 1)

        assert (row["devices"], row["queries"]) == (1, 2)


class TestCommandLine:
    def test_all_methods_by_default_and_a_study_alone(self) -> None:
        assert list(chosen(parser().parse_args([]))) == list(METHODS)
        assert list(chosen(parser().parse_args(["--study", "variants"]))) == list(STUDIES["variants"])
        both = chosen(parser().parse_args(["--study", "variants", "--methods", "auto"]))
        assert list(both) == ["auto", *STUDIES["variants"]]

    def test_one_rate_for_all(self) -> None:
        entry = chosen(parser().parse_args(["--methods", "mezo", "--rate", "0.5"]))["mezo"]

        assert (entry.settings.learning_rate, entry.rates) == (0.5, ())


class TestTasks:
    def test_every_task_has_a_title(self) -> None:
        assert TASKS.keys() == TITLES.keys()
        with pytest.raises(ConfigError, match="task is 'de', expected one of wm,"):
            task_of("de", Places())


def _row(method: str = "auto", task: str = "wm", seed: int = 0, rate: float = 0.0, **others: Any) -> dict[str, Any]:
    judged = {"loss": 1.0, "wer": 0.5, "cer": 0.2, "utterances": 96}
    row: dict[str, Any] = {
        "task": task, "method": method, "seed": seed, "learning_rate": rate, "devices": 8, "budget": {"passes": 100},
        "forwards": 100, "backwards": 0, "up": 400, "down": 8000, "rounds": 4, "minutes": 2.0, "ended": "",
        "before": judged, "after": judged | {"wer": 0.3}, "curve": [[0, 1.0], [50, 0.8], [100, 0.6]],
        "words": [[0, 0.5], [100, 0.3]],
        "chosen": ["loss check: tail-tokens 32: loss within 1%; float32 (not bfloat16: 5%); epsilon 0.0312: 20 times"],
    }  # fmt: skip
    return row | others


class TestReport:
    def test_without_rows_every_block_says_so(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(report, "RESULTS", tmp_path)

        for name, make in report.BLOCKS.items():
            assert report.MISSING in make().lower(), name

    def test_runs_of_another_number_of_devices_stand_in_lines_of_their_own(self) -> None:
        rows = [_row(), _row(devices=1)]

        assert [report.of(rows, "wm", "auto"), report.of(rows, "wm", "auto", devices=1)] == [rows[:1], rows[1:]]

    def test_rows_are_read_and_neither_ended_runs_nor_those_of_other_tensors_are_shown(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(report, "RESULTS", tmp_path)
        rows = [{"wer": 0.5}, _row(), _row(seed=1, ended="round 3: left", after=None), _row(seed=2, tensors="norms")]
        lines = "".join(json.dumps({"key": str(n), "outcome": row}) + "\n" for n, row in enumerate(rows))
        (tmp_path / "learning.jsonl").write_text(lines)

        line = next(line for line in report.tasks_block().splitlines() if "auto" in line)

        assert line == (
            "| West Midlands, Whisper-tiny.en | ours, auto | 8 | 1 | 50.0% | 30.0% | not measured yet | 1.000 | 0.600 "
            "| 100 | 2.0 "
            "| tail-tokens 32, float32, epsilon 0.0312 |"
        )

    def test_a_change_has_an_interval_of_the_same_utterances_and_all_seeds(self) -> None:
        errors = [4] * 50 + [0] * 50
        before = {"loss": 1.0, "wer": 0.5, "cer": 0.2, "utterances": 100, "errors": errors, "units": [8] * 100}
        better = before | {"wer": 0.125, "errors": [2] * 50 + [0] * 50}
        rows = [_row(seed=seed, before=before, after=after) for seed, after in enumerate((better, before))]

        line = next(line for line in report.tasks_block(lambda: rows).splitlines() if "ours, auto" in line)

        # of both seeds half of the utterances lose 2 of 16 words' errors: 6.25 points, known to within a tenth of them
        low, high = (float(end.replace("−", "-")) for end in line.split(" | ")[6].split(" … "))
        assert -7.8 < low < -6.25 < high < -4.7

    def test_methods_are_compared_at_the_budget_that_most_of_them_had(self) -> None:
        long, short = {"budget": {"passes": 200}}, {"budget": {"passes": 50}}
        rows = [_row(), _row("mezo"), _row(**long), _row("mezo", **short), _row("fzoo", **short), _row("auto", **short)]
        assert {r["budget"]["passes"] for r in report.matched(rows, "wm")} == {50}
        assert {r["budget"]["passes"] for r in report.matched(rows[:3], "wm")} == {100}
        assert report.matched(rows, "ru") == []

    def test_the_rate_that_most_seeds_ran_with_then_the_lowest_loss(self) -> None:
        low = [[0, 1.0], [100, 0.5]]
        rows = [_row("mezo", rate=1.0), _row("mezo", rate=2.0, curve=low), _row("mezo", rate=3.0)]
        assert [r["learning_rate"] for r in report.chosen(rows)] == [2.0]
        more = [*rows, _row("mezo", rate=3.0, seed=1)]
        assert [r["learning_rate"] for r in report.chosen(more)] == [3.0, 3.0]
        assert report.chosen([_row("mezo", rate=1.0, ended="x"), _row("mezo", rate=2.0)])[0]["learning_rate"] == 2.0

    def test_a_sweep_under_way_is_not_measured(self) -> None:
        rates = METHODS["mezo"].rates
        assert report.swept([_row("mezo", rate=rate) for rate in rates[1:]] + [_row("auto", rate=0.0)]) == [
            _row("auto", rate=0.0)
        ]
        assert len(report.swept([_row("mezo", rate=rate) for rate in rates])) == len(rates)

    def test_of_two_runs_of_a_seed_the_one_that_transcribed_along_the_way_counts(self) -> None:
        words, silent = (_row("mezo", rate=0.1, budget={"passes": 100, "words": w}) for w in (True, False))
        silent["words"] = []
        assert report.distinct([words, silent, _row()]) == [words, _row()]
        assert len(report.distinct([words, silent | {"seed": 1}])) == 2

    def test_passes_to_half_of_the_best_gain_and_to_a_fifth_fewer_errors(self) -> None:
        slow = _row("mezo", rate=0.1, curve=[[0, 1.0], [100, 0.9]], words=[[0, 0.5], [100, 0.45]])

        lines = report.published_block("wm", lambda: [_row(), slow]).splitlines()

        assert lines[2].endswith("| ours, auto | measured | 1 | 30.0% | 0.600 | 50 | 50 |")
        assert lines[3].endswith("| MeZO, all weights | 0.1 | 1 | 30.0% | 0.900 | not reached | not reached |")

    def test_means_have_their_deviation(self) -> None:
        assert report.mean([0.3, 0.5]) == "40.0% ± 14.1%"
        assert report.mean([1.25], ".1f") == "1.2"
        assert report.mean([]) == report.MISSING

    def test_forgetting_and_first_order(self) -> None:
        accents = dict.fromkeys(("caribbean", "lancashire", "new-york", "scotland", "us"), 0.3)
        rows = [_row(others_before=accents, others_after=accents | {"us": 0.4}), _row("fedavg-all", rate=1e-5, up=4e6)]

        forgetting = report.forgetting_block("wm", lambda: rows)
        assert "| us | 30.0% → 40.0% |" in forgetting
        assert forgetting.endswith(
            "Not measured yet: ours, as tuned by hand before; ours, default tensors, learning rate swept; ours, auto, "
            "biases of the encoder alone."
        )
        assert report.forgetting_block("ru", lambda: rows).startswith("Not measured yet: ")
        block = report.first_order_block("wm", lambda: rows)
        assert "| FedAvg with Adam, all weights | 1 | 30.0% | 0.600 | 4 | 4 MB | 8 kB | 2.0 |" in block
        assert "; FedAvg with Adam, all biases; " in block.splitlines()[-1]
