"""Test-time adaptation on two models, six kinds of speech and several seeds: `python -m benchmarks.tta`.

Word error rates are of voices and sentences that the small CTC model never met; every seed has its own utterances,
noise and directions. Seconds are those of one core, beside the source's on the same utterances in the same process
(of a federation: wall time, all processes). A killed run goes on where it was: what is done lies in `--work`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.rows import spread, store
from benchmarks.tta import settings
from benchmarks.tta.comparison import METHODS
from benchmarks.tta.memory import over_inference
from benchmarks.tta.speech import CONDITIONS, NOISE, SEEDS

Row = dict[str, Any]


def one(task: tuple[str, str, int]) -> list[Row]:
    """All methods but the federation on one model, condition and seed."""
    import torch

    torch.set_num_threads(1)
    model, condition, seed = task
    chosen = settings.comparison(model)
    return [_row(task, name, wer, outcome) for name, wer, outcome in chosen.outcomes(condition, seed)]


def _row(task: tuple[str, str, int], method: str, wer: float, outcome: Any) -> Row:
    numbers = {k: v for k, v in asdict(outcome).items() if k != "transcripts"}
    return {"model": task[0], "condition": task[1], "seed": task[2], "method": method, "wer": wer} | numbers


class Work:
    """The rows that are done, in a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

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

    def has(self, task: tuple[str, str, int], method: str) -> bool:
        """Whether a method is done on a task."""
        return any((r["model"], r["condition"], r["seed"], r["method"]) == (*task, method) for r in self.rows)


def summary(rows: list[Row], model: str, condition: str) -> Row:
    """One line of the table: every method's numbers over seeds, and what share of Adam's gain ZO-TTA has."""
    found: Row = {"model": model, "condition": condition}
    here = [r for r in rows if (r["model"], r["condition"]) == (model, condition)]
    base = {r["seed"]: r for r in here if r["method"] == "source"}
    for method in METHODS:
        mine = sorted((r for r in here if r["method"] == method), key=lambda r: int(r["seed"]))
        if mine:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(settings.MODELS))
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(SEEDS)))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("results/tta/rows.jsonl"))
    a = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = Work(a.work)
    tasks = [(model, condition, seed) for model in a.models for condition in a.conditions for seed in a.seeds]
    with multiprocessing.get_context("spawn").Pool(a.workers) as pool:
        for rows in pool.imap_unordered(one, [t for t in tasks if not work.has(t, "adam-episodic")]):
            work.add(rows)
    for task in tasks:
        if not work.has(task, "zo-federated") and settings.comparison(task[0]).federation:
            wer, outcome = settings.comparison(task[0]).federated(*task[1:])
            work.add([_row(task, "zo-federated", wer, outcome)])
    lines = [summary(work.rows, model, condition) for model in a.models for condition in a.conditions]
    for line in lines:
        wer = ", ".join(f"{m} {line[m]['wer']['mean']:.1%} ± {line[m]['wer']['std']:.1%}" for m in METHODS if m in line)
        print(f"{line['model']} {line['condition']}: {wer}; shares {line['share_of_first_order_gain']}")
    numbers = {
        "seeds": a.seeds,
        "noisy": list(NOISE),
        "settings": {model: settings.described(model) for model in a.models},
        "memory": {model: over_inference(settings.comparison(model).model) for model in a.models},
        "lines": lines,
    }
    print(f"wrote {store('tta', numbers)}")
