"""Weights & Biases: a run in `<output>/wandb`, offline unless `WANDB_MODE` says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import wandb

from server.tracking.run_id import kept_run_id
from server.tracking.tracker import RunFacts, Tracker


class WandbTracker(Tracker):
    """Scalars with the round as step. `wandb sync` sends an offline run; a resumed run has the same id.

    Nothing is sent along that does not describe the run: no console, code, git state, machine or user name.
    """

    name = "wandb"

    def on_run_start(self, run: RunFacts) -> None:
        """Begin or continue the run, with its settings and facts as its config."""
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            dir=run.output,
            project=os.environ.get("WANDB_PROJECT", "federated-zo-asr"),
            name=Path(run.output).absolute().name,
            id=kept_run_id(run.output, self.name, run.resumed, lambda: uuid4().hex[:16]),
            resume="allow",
            config=run.settings | run.facts,
            mode=mode,
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False,
                x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
            ),
        )  # fmt: skip

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        """Log the round's scalars."""
        self._run.log(scalars, step=server_round)

    def on_evaluation(self, server_round: int, scalars: dict[str, float]) -> None:
        """Log the evaluation's scalars."""
        self._run.log(scalars, step=server_round)

    def on_warning(self, server_round: int, message: str) -> None:
        """Send an alert, which an offline run keeps."""
        self._run.alert(title=f"round {server_round}", text=message)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Write the summary and finish; a run that failed or is no better than its start has exit code 1."""
        self._run.summary.update(summary)
        self._run.finish(exit_code=1 if summary["status"] in ("failed", "no better") else 0)
