"""Flower ServerApp: runs a federation and leaves ledger, rounds, curve data and model in the output directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from client.dataset import SpeechDataset, load_dataset
from server.evaluation import Evaluation, evaluate, held_out_loss
from server.export import export_model
from server.federation import Events, Federation
from server.run_log import RoundReport
from zo_common.config import RunConfig
from zo_common.errors import ZOError


@dataclass
class Outcome:
    """What a run reports at its end; `before` and `after` are there if `eval-split` names a held-out split."""

    before: Evaluation | None = None
    after: Evaluation | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


class HeldOut:
    """Evaluates the global model on a held-out split before, during and after a run.

    The first and last evaluation use the whole split; those between, a fixed subset of `eval-utterances` (0: loss only).
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.data: SpeechDataset | None = None
        self.outcome = Outcome()

    def __call__(self, server_round: int, federation: Federation) -> dict[str, Any] | None:
        """Evaluate at a round; also appends to the curve."""
        held = federation.held
        if not self.config.eval_split or held is None:
            return None
        if self.data is None:
            self.data = load_dataset(
                self.config.data,
                held.processor,
                split=self.config.eval_split,
                text_column=self.config.text_column,
                skip_bad=self.config.skip_bad,
            )
        sent = {"up": federation.log.total("up"), "down": federation.log.total("down")}
        last = server_round == self.config.num_server_rounds
        if not last and server_round > 0 and not self.config.eval_utterances:
            row: dict[str, Any] = {"loss": held_out_loss(held.model, self.data)}
        else:
            whole = last or self.outcome.before is None
            data = self.data if whole else replace(self.data, examples=self.data.examples[: self.config.eval_utterances])
            result = evaluate(held.model, held.processor, data, language=self.config.language)
            row = result.summary()
            if last:
                self.outcome.after = result
            elif self.outcome.before is None:
                self.outcome.before = result
        row = {"server_round": server_round, "payload": sent, **row}
        self.outcome.curve.append(row)
        return row


def finish(federation: Federation, held_out: HeldOut) -> None:
    """Write `evaluation.json` and the adapted model."""
    output = Path(federation.config.output)
    outcome = held_out.outcome
    summary = {
        "before": outcome.before.summary() if outcome.before else None,
        "after": outcome.after.summary() if outcome.after else None,
        "curve": outcome.curve,
        "checksum": f"{federation.checksum:016x}",
    }
    (output / "evaluation.json").write_text(json.dumps(summary, indent=1) + "\n")
    if federation.held is not None:
        export_model(federation.held.model, federation.held.processor, output / "model")


def print_round(report: RoundReport) -> None:
    """Flower-style log lines of a round."""
    loss = f"{report.loss:.4f}" if report.loss is not None else "none"
    print(f"[ROUND {report.server_round}] {report.answered}/{report.asked} devices, train loss {loss}")
    print(f"  ├── payload {report.up.payload} B up, {report.down.payload} B down; ledger {report.ledger_bytes} B")
    if report.refused:
        print(f"  ├── refused: {dict(report.refused)}")
    if report.evaluation:
        print(f"  ├── held out: {json.dumps({k: v for k, v in report.evaluation.items() if k != 'payload'})}")
    print(f"  └── checksum {report.checksum or 'unknown'}, {report.seconds:.1f} s", flush=True)


def make_server_app(config: RunConfig | None = None, events: Events | None = None) -> ServerApp:
    """A ServerApp; without `config` it takes `context.run_config`, as `flwr run` gives it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        settings = config or RunConfig.from_mapping(context.run_config)
        held_out = HeldOut(settings)
        hooks = events or Events(on_round=print_round)
        hooks.on_evaluate = held_out
        federation = Federation(settings, grid, hooks)
        federation.run()
        finish(federation, held_out)

    return app


def friendly_main(app_config: RunConfig | None = None) -> ServerApp:
    """The app `flwr run` starts: user errors are one sentence in the log, without a traceback."""
    app = ServerApp()
    inner = make_server_app(app_config)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            inner(grid, context)
        except ZOError as error:
            print(f"error: {error}", flush=True)
            raise SystemExit(1) from None

    return app


app = friendly_main()
