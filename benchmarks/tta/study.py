"""Study of safe settings on the development split: tensors, learning rates, ε, steps and queries, with errors.

    python -m benchmarks.tta.study rates-ctc curve-ctc
    python -m benchmarks.tta.study --model M --learning-rates 1e-4 1e-3 --tensors norms norms+features

Every combination of the lists is a trial: episodes on the same utterances, transcribed after each of `--marks` steps.
Rows of the studies of `benchmarks.tta.studies` go to `benchmarks/results/tta_study.json`, in place of earlier ones of
the same name; lists of your own are printed alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from benchmarks.harness.rows import RESULTS, store
from benchmarks.tta.settings import MODELS, comparison
from benchmarks.tta.speech import speech
from benchmarks.tta.studies import STUDIES
from client.adapt.record import Layout
from zo_common.lattice.grid import Scale

NAME = "tta_study"
METHODS = ("zo", "adam")


@dataclass(frozen=True)
class Trial:
    """One combination; `marks` are the numbers of steps after which is transcribed."""

    model: str
    condition: str
    method: str
    tensors: str
    learning_rate: float
    epsilon: float
    queries: int
    scale: str
    objective: str
    layout: str
    marks: tuple[int, ...]
    utterances: int
    seed: int = 0


def run(trial: Trial) -> dict[str, Any]:
    """Return word errors before and after each mark."""
    import torch

    torch.set_num_threads(1)
    if trial.model in MODELS:
        placed = replace(trial, model=comparison(trial.model).model)
        return run(placed) | {"model": trial.model}
    return asdict(trial) | {"wer": (_adam if trial.method == "adam" else _zo)(trial)}


def _wer(texts: list[str], said: list[str]) -> float:
    from zo_common.speech.metrics import score

    return score(said, texts).wer


def _zo(trial: Trial) -> dict[str, float]:
    from client.adapt.adapter import Adapter, AdaptSettings
    from zo_common.errors import ZOError
    from zo_common.models.load import load_model

    settings = AdaptSettings(
        steps=max(trial.marks),
        num_queries=trial.queries,
        learning_rate=trial.learning_rate,
        epsilon=trial.epsilon,
        trained_tensors=trial.tensors,
        objective=trial.objective,
        patience=0,
        seed=trial.seed,
        scale="rms" if trial.scale == "rms" else "unit",
        layout=cast(Layout, trial.layout),
    )
    adapter = Adapter(load_model(trial.model), settings)
    spoken = speech(trial.condition, trial.seed, trial.utterances, "dev")
    texts: dict[int, list[str]] = {mark: [] for mark in (0, *trial.marks)}
    for one in spoken:
        wave = one.wave

        def note(step: int, loss: float, wave: Any = wave) -> None:
            if step + 1 in trial.marks:
                texts[step + 1].append(adapter.transcribe(wave))

        try:
            texts[0].append(adapter.adapt(wave, note).before)
        except ZOError:  # a step that failed is undone: the base's transcript stands
            texts[0].append(adapter.transcribe(wave))
        for mark in trial.marks:
            texts[mark] += texts[0][len(texts[mark]) :]
    return {str(mark): _wer(found, [one.text for one in spoken]) for mark, found in texts.items()}


def _adam(trial: Trial) -> dict[str, float]:
    from benchmarks.tta.methods import Passes, first_order, source
    from client.adapt.adapter import AdaptSettings
    from zo_common.models.load import load_model

    loaded = load_model(trial.model)
    spoken = speech(trial.condition, trial.seed, trial.utterances, "dev")
    settings = AdaptSettings(trained_tensors=trial.tensors, objective=trial.objective)
    passes = Passes(loaded)
    found = {"0": source(loaded, passes, spoken).scores(spoken).wer}
    for mark in trial.marks:
        outcome = first_order(loaded, passes, spoken, settings, trial.learning_rate, mark)
        found[str(mark)] = outcome.scores(spoken).wer
    return found


def run_all(trials: list[Trial], workers: int) -> list[dict[str, Any]]:
    """Run all trials, with a line each as they end."""
    rows = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, row in enumerate(pool.imap_unordered(run, trials), 1):
            rows.append(row)
            wer = " ".join(f"{k}: {v:.1%}" for k, v in row["wer"].items())
            label = " ".join(str(row[k]) for k in ("method", "condition", "tensors", "scale", "objective"))
            numbers = f"lr {row['learning_rate']:g} eps {row['epsilon']:g} q {row['queries']}"
            print(f"{done}/{len(trials)} {label} {numbers} | {wer}", flush=True)
    return rows


def merge(name: str, rows: list[dict[str, Any]]) -> Path:
    """Store rows under a study's name, beside those of other studies and models."""
    path = RESULTS / f"{NAME}.json"
    studies = json.loads(path.read_text())["studies"] if path.exists() else {}
    studies[name] = rows
    return store(NAME, {"studies": studies})


def parser() -> argparse.ArgumentParser:
    """Return the parser of the lists to combine."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("names", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    made.add_argument("--model", default="")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=["zo"])
    made.add_argument("--conditions", nargs="+", default=["noise-0.01"])
    made.add_argument("--tensors", nargs="+", default=["norms"])
    made.add_argument("--learning-rates", type=float, nargs="+", default=[3e-3])
    made.add_argument("--epsilons", type=float, nargs="+", default=[3e-3])
    made.add_argument("--queries", type=int, nargs="+", default=[8])
    made.add_argument("--scales", nargs="+", choices=get_args(Scale), default=["rms"])
    made.add_argument("--objectives", nargs="+", default=[""])
    made.add_argument("--layouts", nargs="+", choices=get_args(Layout), default=["float32"])
    made.add_argument("--marks", type=int, nargs="+", default=[10, 20, 40])
    made.add_argument("--utterances", type=int, default=20)
    made.add_argument("--workers", type=int, default=2)
    return made


def trials(a: argparse.Namespace) -> list[Trial]:
    """Return every combination of the lists."""
    lists = (
        a.conditions,
        a.methods,
        a.tensors,
        a.learning_rates,
        a.epsilons,
        a.queries,
        a.scales,
        a.objectives,
        a.layouts,
    )
    first = Trial(a.model, "", "", "", 0, 0, 0, "", "", "", tuple(a.marks), a.utterances)
    names = ("condition", "method", "tensors", "learning_rate", "epsilon", "queries", "scale", "objective", "layout")
    return [replace(first, **dict(zip(names, values, strict=True))) for values in itertools.product(*lists)]


def main() -> None:
    made = parser()
    a = made.parse_args()
    if bool(a.names) == bool(a.model):
        made.error("expected names of studies, or --model and lists")
    for name in a.names:
        if name not in STUDIES:
            made.error(f"there is no study {name!r}, expected some of {', '.join(STUDIES)}")
        found = [one for lists in STUDIES[name] for one in trials(made.parse_args(lists))]
        print(f"wrote {merge(name, run_all(found, a.workers))}", flush=True)
    if a.model:
        run_all(trials(a), a.workers)


if __name__ == "__main__":
    main()
