"""Flower ServerApp: runs a federation and leaves ledger, rounds, curve data and model in the output directory."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.guards.choice import guard_for
from server.rounds.events import EvaluatedRun
from server.rounds.federation import Events, Federation, ModelOf, refuse_used_ledger
from server.rounds.private_step import step_size
from server.rounds.verdict import EVALUATION, raise_if_worse, verdict_on
from server.run.log import RoundReport, read_rows, write_rows
from server.run.model import GlobalModel
from server.run.output import check_output
from zo_common.config.run import RunConfig
from zo_common.console import hushed, shown
from zo_common.errors import RunStopped, ZOError
from zo_common.models.compute import choose_device
from zo_common.models.export import export_model
from zo_common.speech.evaluation import evaluate, held_out_loss
from zo_common.speech.recordings import Recordings, read_speech, spread

logger = logging.getLogger(__name__)


class HeldOut:
    """Evaluates the global model on a held-out split before, during and after a run.

    The first and last evaluation of a run decode the whole split, at whichever rounds they are; those between,
    `eval-utterances` spread evenly over it (0: none). The loss is always that of the whole split.
    Every evaluation is a line of `<output>/curve.jsonl`, so that a resumed run keeps what was measured before.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output) / "curve.jsonl"
        self.data: Recordings | None = None
        self.curve: list[dict[str, Any]] = []

    def prepare(self, held: GlobalModel | None) -> None:
        """Read the held-out split: its problems are told before a ledger exists."""
        if self.config.eval_split and held is not None and self.config.evaluate_on == "server":
            self._load(held)

    def __call__(self, server_round: int, federation: EvaluatedRun) -> dict[str, Any] | None:
        """Evaluate at a round, unless a run that is resumed did so already."""
        held = federation.held
        on_clients = self.config.evaluate_on == "clients"
        if not self.config.eval_split or (held is None and not on_clients):
            return None
        if not self.curve and federation.resumed and self.path.exists():
            self.curve = [row for row in read_rows(self.path) if row["server_round"] <= server_round]
        final = server_round >= federation.guard.final_round
        again = bool(self.curve) and self.curve[-1]["server_round"] == server_round
        if again and (not final or _is_whole(self.curve[-1])):
            return self.curve[-1]
        sent = {"up": federation.log.total("up"), "down": federation.log.total("down")}
        measured: dict[str, Any] | None
        if held is None or on_clients:
            measured = federation.evaluate_on_clients(server_round)
        else:
            whole = not self.curve or final
            measured = self._measure(server_round, held, federation.events, decode_all=whole)
        if measured is None:
            return None
        row = {"server_round": server_round, "payload": sent, **measured}
        self.curve = [*(self.curve[:-1] if again else self.curve), row]  # what is redone was not the last one then
        try:
            write_rows(self.path, self.curve)
        except OSError as error:  # the next evaluation writes all of them
            logger.warning(f"{self.path} is not written: {error.strerror}")
        return row

    def _measure(self, server_round: int, held: GlobalModel, events: Events, *, decode_all: bool) -> dict[str, Any]:
        data = self._load(held)
        whole: dict[str, Any] = {"loss_utterances": len(data)}
        if decode_all:
            return self._decode(server_round, held, data, events) | whole
        whole |= {"loss": held_out_loss(held.speech, data)}
        if not self.config.eval_utterances:
            return whole
        some = spread(data, self.config.eval_utterances)
        return self._decode(server_round, held, some, events) | whole

    def _decode(self, server_round: int, held: GlobalModel, data: Recordings, events: Events) -> dict[str, Any]:
        label = f"decoding {self.config.eval_split}, round {server_round}"
        return evaluate(
            held.speech,
            data,
            language=self.config.language,
            on_progress=lambda done, total: events.on_stage(label, done, total),
        ).summary()

    def _load(self, held: GlobalModel) -> Recordings:
        if self.data is None:
            self.data = read_speech(
                self.config.data,
                held.speech.reader(**self.config.reading),
                split=self.config.eval_split,
                text_column=self.config.text_column,
                skip_bad=self.config.skip_bad,
            )
        return self.data


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether an evaluation decoded all utterances, as devices always do with theirs."""
    return "wer" in row and row["utterances"] == row.get("loss_utterances", row["utterances"])


def finish(federation: Federation, held_out: HeldOut, stopped: str = "") -> None:
    """Write `evaluation.json`, with a verdict where the result is worse than the start, and the adapted model.

    Args:
        stopped: why the run stopped before its last round, its verdict then.
    """
    output = Path(federation.config.output)
    curve = held_out.curve
    before, after = (curve[0], curve[-1]) if curve else (None, None)
    summary = {
        "before": before,
        "after": after,
        "curve": curve,
        "guard": federation.guard.summary(),
        "verdict": verdict_on(federation, before, after, stopped),
        "checksum": f"{federation.checksum:016x}" if federation.checksum else "",
    }
    (output / EVALUATION).write_text(json.dumps(summary, indent=1) + "\n")
    if federation.held is not None:
        held = federation.held
        export_model(held.model, held.processor, output / "model", replace=federation.resumed)


def check_before_start(config: RunConfig) -> None:
    """Load the base model and check settings against it before slow things start (a simulation engine, devices).

    Raises:
        ModelNotFound, UnsupportedModel, PatternError, EpsilonTooSmall, ConfigError: as the run itself would.
    """
    check_output(config)
    refuse_used_ledger(config)
    choose_device(config.device)  # those of a simulation are on this machine
    held = GlobalModel(config)
    HeldOut(config).prepare(held)
    with hushed("server"):
        guard_for(config, held)
        step_size(config, held)


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


def run_on(grid: Grid, config: RunConfig, events: Events | None = None, model_of: ModelOf = GlobalModel) -> None:
    """A whole run on the devices of a grid: its rounds, `evaluation.json` and the adapted model.

    Args:
        model_of: as of `Federation`.
    """
    check_output(config)
    held_out = HeldOut(config)
    hooks = events or Events(on_round=log_round)
    hooks.on_evaluate = held_out
    hooks.on_model = held_out.prepare
    federation = Federation(config, grid, hooks, model_of)
    stopped = ""
    try:
        federation.run()
    except RunStopped as error:  # what it came to is exported all the same, and the verdict ends the command
        stopped = str(error)
    finish(federation, held_out, stopped)


def make_server_app(config: RunConfig | None = None, events: Events | None = None) -> ServerApp:
    """A ServerApp; without `config` it takes `context.run_config`, as `flwr run` gives it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_on(grid, config or RunConfig.from_mapping(context.run_config), events)

    return app


def output_of(config: RunConfig | None, context: Context) -> Path:
    """Where a run leaves its files: of `config`, or the settings that `flwr run` gives."""
    return Path((config or RunConfig.from_mapping(context.run_config)).output)


def friendly_main(app_config: RunConfig | None = None) -> ServerApp:
    """The app `flwr run` starts: user errors are one sentence in the log, without a traceback.

    A run whose result is worse than its start ends in the same way, once the best state is exported.
    """
    app = ServerApp()
    inner = make_server_app(app_config)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        with shown(logging.StreamHandler(sys.stdout)):
            try:
                inner(grid, context)
                raise_if_worse(output_of(app_config, context))
            except ZOError as error:
                logger.error(f"error: {error}")
                raise SystemExit(1) from None

    return app


app = friendly_main()
