"""Flower ServerApp: runs a federation and writes ledger, round log, learning curve and model to the output folder."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.devices.enrolment import Enrolment
from server.guards.choice import guard_for
from server.rounds.federation import Events, Federation, ModelOf, refuse_used_ledger
from server.rounds.held_out import HeldOut
from server.rounds.private_step import step_size
from server.rounds.verdict import answered, raise_if_worse, verdict_on
from server.run.farewell import failed
from server.run.log import EVALUATION, RoundReport, write_json
from server.run.log_file import log_file
from server.run.model import GlobalModel
from server.run.output import check_output
from server.tracking.choice import trackers_of
from server.tracking.tracking import Tracking
from zo_common.config.run import RunConfig
from zo_common.console import hushed, shown
from zo_common.errors import ExportFailed, RunStopped, ZOError, first_line
from zo_common.ledger.file import LEDGER_NAME
from zo_common.models.card import model_card
from zo_common.models.compute import choose_device
from zo_common.models.export import export_model
from zo_common.speech.comparison import change_text

logger = logging.getLogger(__name__)


def finish(federation: Federation, held_out: HeldOut, stopped: str = "") -> dict[str, Any]:
    """Write `evaluation.json`, with a verdict where the result is worse than the start, and the adapted model.

    No model is exported if no round had a valid reply, because it would equal the base model.

    Args:
        stopped: why the run stopped before its last round; this becomes the verdict.

    Returns:
        What `evaluation.json` holds; `comparison` is the change on the held-out split, as `HeldOut.comparison`.

    Raises:
        ExportFailed: the files cannot be written; the ledger still holds the whole run.
    """
    output = Path(federation.config.output)
    curve = held_out.curve
    before, after = (curve[0], curve[-1]) if curve else (None, None)
    summary = {
        "before": before,
        "after": after,
        "comparison": held_out.comparison(),
        "curve": curve,
        "guard": federation.guard.summary(),
        "verdict": verdict_on(federation, before, after, stopped),
        "checksum": f"{federation.checksum:016x}" if federation.checksum else "",
    }
    try:
        write_json(output / EVALUATION, summary)
        if federation.global_model is not None and answered(federation):
            _export(federation, federation.global_model, before, after)
    except (OSError, ExportFailed) as error:
        what = f"{EVALUATION} cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise ExportFailed(f"{what}: free some space, then resume the run, all of which is in {LEDGER_NAME}") from None
    return summary


def _export(federation: Federation, global_model: GlobalModel, before: dict[str, Any] | None, after: Any) -> None:
    config = federation.config
    header, rounds = federation.ledger.ledger.header, federation.last_round
    card = model_card(config.model, config.language, rounds=rounds, trained=header.pattern, before=before, after=after)
    folder = Path(config.output) / "model"
    global_model.hold_in("float32")
    export_model(
        global_model.model,
        global_model.processor,
        folder,
        replace=federation.resumed,
        language=config.language,
        card=card,
    )


def check_before_start(config: RunConfig) -> None:
    """Load the base model and check the settings against it, before a simulation engine or devices start.

    Raises:
        ModelNotFound, UnsupportedModel, PatternError, EpsilonTooSmall, ConfigError: as the run itself would.
    """
    check_output(config)
    refuse_used_ledger(config)
    trackers_of(config)
    choose_device(config.device)  # simulated devices run on this machine
    global_model = GlobalModel(config)
    HeldOut(config).prepare(global_model)
    with hushed("server"):
        guard_for(config, global_model)
        step_size(config, global_model)


def log_round(report: RoundReport) -> None:
    """Flower-style log lines of a round."""
    loss = f"{report.loss:.4f}" if report.loss is not None else "none"
    logger.info(f"[ROUND {report.server_round}] {report.answered}/{report.asked} devices, train loss {loss}")
    up, down = report.up.payload, report.down.payload
    logger.info(f"  ├── payload {up} B up, {down} B down; ledger {report.ledger_bytes} B")
    if report.refused:
        logger.info(f"  ├── refused: {dict(report.refused)}")
    if report.evaluation:
        held_out = {key: value for key, value in report.evaluation.items() if key != "payload"}
        logger.info(f"  ├── held out: {json.dumps(held_out)}")
    logger.info(f"  └── checksum {report.checksum or 'unknown'}, {report.seconds:.1f} s")


def log_comparison(found: dict[str, Any] | None) -> None:
    """Log the change on the held-out split: one line for the whole split and one for each group."""
    if found is None:
        return
    rate, normalizer = found["metric"].upper(), found["normalizer"]
    logger.info(f"{rate} {change_text(found)}, {found['utterances']} utterances, {normalizer}")
    for column, groups in found["groups"].items():
        for group in groups:
            value = group["value"] or "not given"
            logger.info(f"  {column} {value}: {change_text(group)}, {group['utterances']} utterances")


def run_on(
    grid: Grid,
    config: RunConfig,
    events: Events | None = None,
    model_of: ModelOf = GlobalModel,
    enrolment: Enrolment | None = None,
) -> None:
    """Run all rounds on the devices of a grid; write `evaluation.json` and the adapted model.

    Args:
        model_of, enrolment: as in `Federation`.
    """
    check_output(config)
    held_out = HeldOut(config)
    hooks = events or Events(on_round=log_round)
    hooks.on_evaluate = held_out
    hooks.on_model = held_out.prepare
    with log_file(Path(config.output)), Tracking(config, trackers_of(config)) as tracking:
        federation = Federation(config, grid, tracking.watched(hooks), model_of, enrolment)
        tracking.start(federation, held_out.data)
        stopped = ""
        try:
            federation.run()
        except RunStopped as error:  # the model is exported all the same; the verdict ends the command
            stopped = str(error)
        summary = finish(federation, held_out, stopped)
        tracking.finish(federation, stopped, summary["verdict"], summary["comparison"])
    if events is None:
        log_comparison(summary["comparison"])


def make_server_app(
    config: RunConfig | None = None, events: Events | None = None, enrolment: Enrolment | None = None
) -> ServerApp:
    """Return a ServerApp; without `config` it uses `context.run_config`, as `flwr run` passes it.

    Args:
        enrolment: as in `Federation`; default: the devices are the operator's own where Flower simulates them.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        known = enrolment or Enrolment(own_devices=_beside_an_engine())
        run_on(grid, config or RunConfig.from_mapping(context.run_config), events, enrolment=known)

    return app


def _beside_an_engine() -> bool:
    """Return whether this is the thread in which Flower's simulation runs a ServerApp, beside its engine."""
    return threading.current_thread() is not threading.main_thread()


def output_of(config: RunConfig | None, context: Context) -> Path:
    """Return the output folder, from `config` or from the settings that `flwr run` passes."""
    return Path((config or RunConfig.from_mapping(context.run_config)).output)


def friendly_main(app_config: RunConfig | None = None) -> ServerApp:
    """Return the app that `flwr run` starts: user errors are one sentence in the log, without a traceback.

    A run whose result is worse than its start ends in the same way, once the best state is exported. Flower runs a
    simulation's ServerApp in a thread beside the engine, where an exit status is lost.
    """
    app = ServerApp()
    inner = make_server_app(app_config)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        with shown(logging.StreamHandler(sys.stdout)):
            try:
                inner(grid, context)
                raise_if_worse(output_of(app_config, context))
            except (ZOError, OSError) as error:
                logger.error(f"error: {error}")
                if _beside_an_engine():
                    raise failed(first_line(error)) from None
                raise SystemExit(1) from None

    return app


app = friendly_main()
