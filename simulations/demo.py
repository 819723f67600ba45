"""The demo: eight speakers of one English dialect adapt real Whisper-tiny.en without sending audio or weights."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from server.report.data import intervals
from server.rounds.federation import LEDGER_NAME
from server.run.log import EVALUATION
from server.watch.progress import RunProgress, headline
from simulations.before_start import check_simulation
from simulations.reports.plots import can_plot, plot_curve
from simulations.reports.report import group_tables, replayed_elsewhere, summary_table, traffic, write_result
from simulations.runner import run_federation
from simulations.scenario import Scenario
from simulations.simulation import Places, prepare
from simulations.speech.corpus import Corpus
from zo_common.config.run import RunConfig
from zo_common.models.export import count_parameters
from zo_common.models.load import model_config
from zo_common.speech.model_kinds import kind_of

STARTING = "Ray and the models"
GRACE = 5.0
"""Seconds that a simulation has to end after a signal; then its process is killed."""


def run_scenario(
    scenario: Scenario, places: Places, console: Console, command: str, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run a scenario from corpus to table.

    1. Speech: synthesise the scenario's corpus, if it names one (an existing corpus is reused).
    2. Model: the bundled Whisper-tiny.en, unless the scenario names another.
    3. The federation, in Flower's simulation engine.
    4. Replay of the ledger in another process; table, `result.json`, `curve.png`.

    Returns:
        The numbers of `result.json`, and `output`.

    Raises:
        Interrupted: SIGINT or SIGTERM came while devices trained.
    """
    start = time.monotonic()
    with console.status("preparing speech and model"):
        prepared = prepare(scenario, places, overrides)
    config, devices, corpus = prepared.config, prepared.devices, prepared.corpus
    if corpus is not None:
        _say_speech(console, corpus)
    check_simulation(config, devices)
    _say_what(console, scenario, config, devices)
    with RunProgress(console, config.num_server_rounds, STARTING) as progress:
        run_federation(
            config, devices, progress.events(), scenario.actors, grace=GRACE, on_start=lambda: _say_start(console)
        )
    unseen = corpus is not None and config.eval_split not in ("", config.train_split)
    note = "speakers and sentences nobody trained on" if unseen else f"evaluated on {config.eval_split or 'nothing'}"
    title = f"{scenario.name}: {devices} devices, {note}"
    return leave_results(
        config, devices, console, command, title, start, figure=f"{scenario.name}: split {config.eval_split}"
    )


def leave_results(
    config: RunConfig, devices: int, console: Console, command: str, title: str, start: float, *, figure: str
) -> dict[str, Any]:
    """Replay a run's ledger in another process, write `result.json` and `curve.png`, and print the table.

    Args:
        command: the command line that the user typed.
        title, figure: titles of the table and of the plot.
        start: start of the run, from `time.monotonic`.

    Returns:
        The numbers of `result.json`, and `output`.
    """
    output = Path(config.output)
    with console.status("replaying the ledger in another process"):
        numbers = _numbers(config, output, devices, start)
    write_result(output, config, devices, numbers, command)
    curve = json.loads((output / EVALUATION).read_text())["curve"]
    if curve and can_plot(console):
        plot_curve(curve, output / "curve.png", figure, devices, numbers["loss_unit"], intervals(output))
    console.print(summary_table(numbers, title))
    for table in group_tables(numbers["comparison"]):
        console.print(table)
    console.print(f"results in {output}", highlight=False)
    return {"output": str(output), **numbers}


def _say_speech(console: Console, corpus: Corpus) -> None:
    seconds = sum(corpus.seconds.values())
    console.print(
        f"speech: {sum(corpus.utterances.values())} utterances, {seconds / 60:.1f} min, accent {corpus.accent}; "
        f"train speakers {len(corpus.speakers['train'])}, test speakers {len(corpus.speakers['test'])}",
        highlight=False,
    )


def _say_what(console: Console, scenario: Scenario, config: RunConfig, devices: int) -> None:
    console.print(headline(scenario.name, config, f"{devices} devices"), highlight=False)


def _say_start(console: Console) -> None:
    console.print(f"{STARTING} start now; the bar appears with the first round", highlight=False)


def _numbers(config: RunConfig, output: Path, devices: int, start: float) -> dict[str, Any]:
    evaluation = json.loads((output / EVALUATION).read_text())
    replayed = replayed_elsewhere(output, config.model, threads=1)
    return {
        "before": evaluation["before"],
        "after": evaluation["after"],
        "comparison": evaluation["comparison"],
        "guard": evaluation["guard"],
        "verdict": evaluation["verdict"],
        "loss_unit": kind_of(model_config(config.model)).unit,
        "checksum": evaluation["checksum"],
        "replayed_checksum": replayed,
        "checksums_agree": replayed == evaluation["checksum"] if evaluation["checksum"] else None,
        "traffic": asdict(traffic(output, devices, _parameters(output, config))),
        "ledger_bytes": (output / LEDGER_NAME).stat().st_size,
        "minutes": (time.monotonic() - start) / 60,
    }


def _parameters(output: Path, config: RunConfig) -> int:
    """Return the number of weights of the saved model or, without one, of the base."""
    source = output / "model" if (output / "model").exists() else Path(config.model)
    return count_parameters(source)
