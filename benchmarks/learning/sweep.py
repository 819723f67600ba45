"""Runs of methods on tasks: `python -m benchmarks.learning --tasks wm ru --methods fixed auto --seeds 0 1 2`.

    python -m benchmarks.learning --tasks wm --study variants
    python -m benchmarks.learning --tasks wm --methods auto adam-same --passes 400000 --points 40    # to the plateau

A learning rate that is swept is chosen by the development split's loss at the end of a run of seed 0, the grid being
widened while the best is at its edge; then it is used for every seed. Methods are matched by passes (a backward pass
counts as two). What is done lies in `benchmarks/results/learning.jsonl`, a run under way in `--work`: the same command
goes on where it was killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.command import PLACES, command
from benchmarks.harness.result_cache import Outcome, ResultCache
from benchmarks.harness.revision import revision
from benchmarks.harness.rows import RESULTS
from benchmarks.learning.crowd import Crowd
from benchmarks.learning.forgetting import others_wer
from benchmarks.learning.learn import Budget, learn
from benchmarks.learning.method import Settings
from benchmarks.learning.methods import ALL, METHODS, STUDIES, Entry
from benchmarks.learning.tasks import TASKS, Places, Task, task_of
from simulations.reports.machine import hardware, versions
from zo_common.console import LineHandler, shown
from zo_common.models.quiet import quiet_transformers

ROWS = RESULTS / "learning.jsonl"
PASSES = 12_288  # 12 rounds of 8 devices × 8 directions × 16 utterances
MOST_WIDENED = 2


class Lab:
    """Runs what is not known yet, on one machine.

    Args:
        work: folder of checkpoints and features.
    """

    def __init__(
        self, cache: ResultCache, places: Places, budget: Budget, work: Path, threads: int, forgetting: bool
    ) -> None:
        self._cache, self._places, self._budget = cache, places, budget
        self._work, self._threads, self._forgetting = work, threads, forgetting

    def outcome(self, task: Task, entry: Entry, settings: Settings) -> Outcome:
        """Return a row: settings, loss and words before and after, and the cost."""
        text = json.dumps({"task": task.name, **asdict(settings), "budget": asdict(self._budget)}, sort_keys=True)
        asked: dict[str, Any] = json.loads(text)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]

        def measure() -> Outcome:
            print(f"{task.name} {settings.method} rate {settings.learning_rate:g} seed {settings.seed}", flush=True)
            found = self._run(task, entry, settings, self._work / f"{name}.pt")
            return {**asked, **found, **_about()}

        return self._cache(asked, measure)

    def _run(self, task: Task, entry: Entry, settings: Settings, checkpoint: Path) -> Outcome:
        before = self._before(task)
        crowd = self._crowd(task, settings.devices, settings.seed)
        method = entry.make(crowd, settings, self._budget)
        run = learn(crowd, method, self._budget, checkpoint, lambda message: print("  " + message, flush=True))
        found = run.plain() | {"before": before, "after": None, "chosen": crowd.choices}
        if not run.ended:
            found["after"] = asdict(crowd.judge(most=self._budget.test_utterances))
            if self._forgetting and task.language == "en":
                found["others_before"] = self._others_before(task)
                found["others_after"] = others_wer(crowd, self._places)
        checkpoint.unlink(missing_ok=True)
        return found

    def _crowd(self, task: Task, devices: int, seed: int) -> Crowd:
        return Crowd(task, devices, seed=seed, threads=self._threads, cache=self._work / "features")

    def _before(self, task: Task) -> Outcome:
        most = self._budget.test_utterances
        asked = {"task": task.name, "base": "test", "test_utterances": most}
        return self._cache(asked, lambda: asdict(self._crowd(task, 1, 0).judge(most=most)))

    def _others_before(self, task: Task) -> Outcome:
        asked = {"model": Path(task.model).name, "base": "others"}
        return self._cache(asked, lambda: others_wer(self._crowd(task, 1, 0), self._places))

    def row(self, task: Task, entry: Entry, seeds: Sequence[int], devices: int | None = None) -> list[Outcome]:
        """Return the outcomes of a method for some seeds, its learning rate chosen first where it is swept."""
        settings = entry.settings if devices is None else _among(entry.settings, devices)

        def end(rate: float) -> float:
            found = self.outcome(task, entry, replace(settings, learning_rate=rate))
            return float("inf") if found["ended"] else float(found["curve"][-1][1])

        if entry.rates:
            settings = replace(settings, learning_rate=choose_rate(entry.rates, end))
        return [self.outcome(task, entry, replace(settings, seed=seed)) for seed in seeds]


def _among(settings: Settings, devices: int) -> Settings:
    """Return settings for another number of devices: with as many directions a round, unless the step is measured.

    A measured step adapts to any number, and every device keeps the default of its directions, as in `zo-asr train`.
    """
    if settings.learning_rate == 0:
        return replace(settings, devices=devices)
    return replace(settings, devices=devices, queries=max(1, settings.queries * settings.devices // devices))


def choose_rate(rates: Sequence[float], loss_of: Callable[[float], float]) -> float:
    """Return the rate with the lowest loss; one at the edge is compared with the next beyond, at most twice."""
    found = {rate: loss_of(rate) for rate in rates}
    for _ in range(MOST_WIDENED if len(found) > 1 else 0):
        ordered, best = sorted(found), min(found, key=lambda rate: found[rate])
        if best == ordered[0]:
            beyond = best * best / ordered[1]
        elif best == ordered[-1]:
            beyond = best * best / ordered[-2]
        else:
            break
        beyond = float(f"{beyond:.2g}")
        found[beyond] = loss_of(beyond)
    return min(found, key=lambda rate: found[rate])


def _about() -> dict[str, Any]:
    return {
        "command": command("benchmarks.learning", (*PLACES, "--models")),
        "revision": revision(),
        "hardware": hardware(),
        "versions": versions(),
    }


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    made.add_argument("--methods", nargs="+", choices=ALL, help="default: all but the studies'")
    made.add_argument("--study", choices=STUDIES)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument(
        "--devices", type=int, help="another number than the method's own; a fixed rate keeps the directions a round"
    )
    made.add_argument("--rate", type=float, help="one learning rate for all, instead of a sweep or of the measured one")
    made.add_argument("--passes", type=int, default=PASSES, help="budget of a run")
    made.add_argument("--minutes", type=float, default=0.0, help="of learning, after which a run ends; 0: no limit")
    made.add_argument("--points", type=int, default=6, help="of a curve")
    made.add_argument(
        "--words", action="store_true", help="transcribe the development split at the curve's points, too"
    )
    made.add_argument("--test-utterances", type=int, default=0, help="transcribe only so many; 0: all")
    made.add_argument("--threads", type=int, default=0, help="of torch; 0: all cores")
    made.add_argument("--forgetting", action="store_true", help="other accents before and after, too")
    made.add_argument("--models", type=Path, default=Places.models)
    made.add_argument("--data", type=Path, default=Places.data)
    made.add_argument("--debian", type=Path, help="folder where Debian's packages are unpacked; default: download")
    made.add_argument("--work", type=Path, default=Path("results/learning"))
    made.add_argument("--rows", type=Path, default=ROWS)
    return made


def chosen(arguments: argparse.Namespace) -> Mapping[str, Entry]:
    """Return the methods that a command line asks for."""
    names = list(arguments.methods or ([] if arguments.study else METHODS))
    names += STUDIES[arguments.study] if arguments.study else []
    entries = {name: ALL[name] for name in dict.fromkeys(names)}
    if arguments.rate is None:
        return entries
    return {
        name: replace(e, settings=replace(e.settings, learning_rate=arguments.rate), rates=())
        for name, e in entries.items()
    }


def main() -> None:
    arguments = parser().parse_args()
    quiet_transformers()
    places = Places(arguments.models, arguments.data, arguments.debian)
    budget = Budget(arguments.passes, arguments.minutes, arguments.points, arguments.words, arguments.test_utterances)
    lab = Lab(ResultCache(arguments.rows), places, budget, arguments.work, arguments.threads, arguments.forgetting)
    with shown(LineHandler(lambda message: print(f"  {message}", flush=True))):
        _run_all(arguments, lab, places)


def _run_all(arguments: argparse.Namespace, lab: Lab, places: Places) -> None:
    for task in (task_of(name, places) for name in arguments.tasks):
        for entry in chosen(arguments).values():
            for row in lab.row(task, entry, arguments.seeds, arguments.devices):
                after = f"{row['after']['wer']:.1%}" if row["after"] else row["ended"]
                print(
                    f"{task.name} {entry.title} seed {row['seed']}: WER {row['before']['wer']:.1%} → {after}, dev loss "
                    f"{row['curve'][0][1]:.3f} → {row['curve'][-1][1]:.3f}, {row['minutes']:.1f} min",
                    flush=True,
                )
