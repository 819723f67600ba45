"""The main job: eight speakers of one English dialect adapt real Whisper-tiny.en without sending audio or weights."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from server.app import check_before_start
from server.rounds.federation import LEDGER_NAME
from simulations.models.whisper_import import bundled_whisper
from simulations.reports.plots import plot_curve
from simulations.reports.progress import RunProgress
from simulations.reports.report import replayed_elsewhere, summary_table, traffic, write_result
from simulations.runner import run_simulation
from simulations.scenario import Scenario
from simulations.speech.corpus import Corpus, write_corpus
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError
from zo_common.models.load import model_family


@dataclass(frozen=True)
class Places:
    """Where things are kept between runs."""

    models: Path = Path("models")
    data: Path = Path("data")
    results: Path = Path("results")


def run_scenario(
    scenario: Scenario, places: Places, console: Console, command: str, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run a scenario from corpus to table.

    1. Speech: synthesise the scenario's corpus, if it names one (reused if it is there already).
    2. Model: the bundled Whisper-tiny.en, unless the scenario names another.
    3. The federation, in Flower's simulation engine.
    4. Replay of the ledger in another process; table, `result.json`, `curve.png`.

    Returns:
        The numbers of `result.json`.
    """
    start = time.monotonic()
    overrides = dict(overrides or {})
    scenario.config(**overrides)  # a mistyped setting is named before speech is made
    corpus = _speech(scenario, places, console, overrides)
    config = scenario.config(**overrides)
    if not config.model:
        config = replace(config, model=str(bundled_whisper(places.models).resolve()))
    devices = scenario.devices or (len(corpus.speakers["train"]) if corpus else 0)
    if not devices:
        raise ConfigError("the scenario says neither devices nor a corpus: set devices in [simulation]")
    output = Path(config.output)
    check_before_start(config)
    _say_what(console, scenario, config, devices, corpus)
    with RunProgress(console, config.num_server_rounds) as progress:
        run_simulation(config, devices, progress.events(), scenario.actors)
    numbers = _numbers(config, output, devices, start)
    write_result(output, config, devices, numbers, command)
    curve = json.loads((output / "evaluation.json").read_text())["curve"]
    if curve:
        title = f"{scenario.name}: split {config.eval_split}"
        plot_curve(curve, output / "curve.png", title, devices, numbers["loss_unit"])
    unseen = corpus is not None and config.eval_split not in ("", config.train_split)
    note = "speakers and sentences nobody trained on" if unseen else f"evaluated on {config.eval_split or 'nothing'}"
    console.print(summary_table(numbers, f"{scenario.name}: {devices} devices, {note}"))
    console.print(f"results in {output}", highlight=False)
    return numbers


def _speech(scenario: Scenario, places: Places, console: Console, overrides: dict[str, Any]) -> Corpus | None:
    if scenario.corpus is None:
        return None
    name = f"{scenario.name}-{scenario.corpus.seed}"
    with console.status("synthesising speech"):
        corpus = write_corpus(places.data / name, scenario.corpus)
    overrides.setdefault("data", str(corpus.directory.resolve()))
    seconds = sum(corpus.seconds.values())
    console.print(
        f"speech: {sum(corpus.utterances.values())} utterances, {seconds / 60:.1f} min, accent {corpus.accent}; "
        f"train speakers {len(corpus.speakers['train'])}, test speakers {len(corpus.speakers['test'])}",
        highlight=False,
    )
    return corpus


def _say_what(console: Console, scenario: Scenario, config: RunConfig, devices: int, corpus: Corpus | None) -> None:
    console.print(
        f"{scenario.name}: {devices} devices, {config.num_server_rounds} rounds of {config.local_steps} step(s) x "
        f"{config.num_queries} queries ({config.estimator}), batch {config.batch_size}, "
        f"trained: {config.trained_tensors}" + ("" if config.needs_text else f", objective: {config.objective}"),
        highlight=False,
    )
    console.print("Ray and the models start now; the bar appears with the first round", highlight=False)


def _numbers(config: RunConfig, output: Path, devices: int, start: float) -> dict[str, Any]:
    evaluation = json.loads((output / "evaluation.json").read_text())
    replayed = replayed_elsewhere(output, config.model, threads=1)
    return {
        "before": evaluation["before"],
        "after": evaluation["after"],
        "guard": evaluation["guard"],
        "verdict": evaluation["verdict"],
        "loss_unit": "character" if model_family(config.model) == "ctc" else "token",
        "checksum": evaluation["checksum"],
        "replayed_checksum": replayed,
        "checksums_agree": replayed == evaluation["checksum"] if evaluation["checksum"] else None,
        "traffic": asdict(traffic(output, devices, _parameters(output, config))),
        "ledger_bytes": (output / LEDGER_NAME).stat().st_size,
        "minutes": (time.monotonic() - start) / 60,
    }


def _parameters(output: Path, config: RunConfig) -> int:
    """Number of weights of the saved model (tied ones once)."""
    from safetensors import safe_open

    source = output / "model" if (output / "model").exists() else Path(config.model)
    count = 0
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a dict)
                size = 1
                for dimension in tensors.get_slice(name).get_shape():
                    size *= dimension
                count += size
    return count
