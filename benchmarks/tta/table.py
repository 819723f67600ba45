"""Test-time adaptation on two models, six kinds of speech and several seeds: `python -m benchmarks.tta`.

Word error rates are of voices and sentences that the small CTC model never met; every seed has its own utterances,
noise and directions. Seconds are those of one core, beside the source's on the same utterances in the same process
(of a federation: wall time, all processes). A killed run goes on where it was: what is done lies in `--work`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import spread, store
from benchmarks.tta import settings
from benchmarks.tta.comparison import FEDERATED, METHODS
from benchmarks.tta.memory import over_inference
from benchmarks.tta.speech import CONDITIONS, NOISE, SEEDS
from server.run.log import read_rows

Row = dict[str, Any]
Cell = tuple[str, str, int]  # model, condition, seed
Task = tuple[str, str, int, tuple[str, ...]]


def one(task: Task) -> list[Row]:
    """Run some methods, but not the federation, on one model, condition and seed."""
    import torch

    torch.set_num_threads(1)
    model, condition, seed, methods = task
    found = settings.comparison(model).outcomes(condition, seed, methods)
    return [_row((model, condition, seed), name, wer, outcome) for name, wer, outcome in found]


def _row(cell: Cell, method: str, wer: float, outcome: Any) -> Row:
    numbers = {k: v for k, v in asdict(outcome).items() if k != "transcripts"}
    named = {"model": cell[0], "condition": cell[1], "seed": cell[2], "method": method}
    return named | {"settings": digest(cell[0], method), "wer": wer} | numbers


def digest(model: str, method: str) -> str:
    """Return a digest of a method's settings: rows that were measured with others do not count."""
    text = json.dumps(settings.comparison(model).settings_of(method), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Work:
    """The rows that are done, in a file; a line that a kill has torn does not count."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.rows: list[Row] = read_rows(path) if path.exists() else []
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows, and say them."""
        with self._path.open("a") as file:
            for row in rows:
                self.rows.append(row)
                file.write(json.dumps(row) + "\n")
                print(
                    f"{row['model']} {row['condition']} seed {row['seed']} {row['method']}: WER {row['wer']:.1%}, "
                    f"{row['seconds']:.2f} s and {row['forwards']:.0f} forwards an utterance",
                    flush=True,
                )

    def of(self, cell: Cell, method: str) -> Row | None:
        """Return the row of a method under its present settings, if it is there."""
        wanted = (*cell, method, digest(cell[0], method))
        keys = ("model", "condition", "seed", "method", "settings")
        return next((row for row in self.rows if tuple(row.get(key) for key in keys) == wanted), None)

    def missing(self, cell: Cell) -> tuple[str, ...]:
        """Return methods without a row."""
        return tuple(method for method in METHODS if self.of(cell, method) is None)


def summary(rows: list[Row], model: str, condition: str) -> Row:
    """Return one line of the table: every method's numbers over seeds, and ZO-TTA's share of Adam's gain."""
    found: Row = {"model": model, "condition": condition}
    here = [r for r in rows if (r["model"], r["condition"]) == (model, condition)]
    base = {r["seed"]: r for r in here if r["method"] == "source"}
    for method in METHODS:
        mine = sorted((r for r in here if r["method"] == method), key=lambda r: int(r["seed"]))
        if len(mine) == len(base):
            found[method] = {
                "wer": spread([r["wer"] for r in mine]),
                "seconds_over_source": spread([r["seconds"] / base[r["seed"]]["seconds"] for r in mine]),
                **{k: statistics.fmean(r[k] for r in mine) for k in ("forwards", "backwards", "seconds", "stored")},
            }
    mean = {method: found[method]["wer"]["mean"] for method in METHODS if method in found}
    gain = mean["source"] - mean["adam-episodic"]
    zo = [m for m in METHODS if m.startswith("zo") and m in mean]
    found["share_of_first_order_gain"] = {m: (mean["source"] - mean[m]) / gain if gain > 0 else None for m in zo}
    return found


def measure(work: Work, cells: list[Cell], workers: int) -> None:
    """Measure all missing rows: one process a cell, then federations, which take all cores, in turn."""
    alone = [(*cell, tuple(m for m in work.missing(cell) if m != FEDERATED)) for cell in cells]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for rows in pool.imap_unordered(one, [task for task in alone if task[3]]):
            work.add(rows)
    for cell in cells:
        if FEDERATED in work.missing(cell):
            wer, outcome = settings.comparison(cell[0]).federated(*cell[1:])
            work.add([_row(cell, FEDERATED, wer, outcome)])


def collect(work: Work, cells: list[Cell]) -> list[Row]:
    """Print and return a line for each model and condition measured for every seed and both yardsticks."""
    rows = [row for cell in cells for method in METHODS if (row := work.of(cell, method)) is not None]
    without = {cell[:2] for cell in cells for method in ("source", "adam-episodic") if work.of(cell, method) is None}
    lines = [summary(rows, *pair) for pair in dict.fromkeys(cell[:2] for cell in cells) if pair not in without]
    for line in lines:
        wer = ", ".join(f"{m} {line[m]['wer']['mean']:.1%} ± {line[m]['wer']['std']:.1%}" for m in METHODS if m in line)
        print(f"{line['model']} {line['condition']}: {wer}; shares {line['share_of_first_order_gain']}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(settings.MODELS))
    parser.add_argument("--conditions", nargs="+", help="only these, and only into the work file")
    parser.add_argument("--collect", action="store_true", help="measure nothing: store what the work file has")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("results/tta/rows.jsonl"))
    a = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = Work(a.work)
    cells = [(m, condition, seed) for m in a.models for condition in a.conditions or CONDITIONS for seed in a.seeds]
    if not a.collect:
        measure(work, cells, a.workers)
    lines = collect(work, cells)
    if a.conditions:
        return
    numbers = {
        "seeds": a.seeds,
        "noisy": list(NOISE),
        "settings": {model: settings.described(model) for model in a.models},
        "memory": {model: over_inference(settings.comparison(model).model) for model in a.models},
        "lines": lines,
    }
    print(f"wrote {store('tta', numbers)}")
