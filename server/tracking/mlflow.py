"""MLflow: a run at `MLFLOW_TRACKING_URI`, by default in files in `<output>/mlruns`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from server.tracking.run_id import kept_run_id
from server.tracking.tracker import RunFacts, Tracker

_EXPERIMENT = "federated-zo-asr"
_MOST_PARAMS = 100  # in one call
_LONGEST = 5000  # characters of a tag


class MlflowTracker(Tracker):
    """Metrics with the round as step, settings as parameters, warnings as a text; a resumed run is the same run."""

    name = "mlflow"

    def on_run_start(self, run: RunFacts) -> None:
        """Create the run, or continue it: then only what changed of the settings is told, by tags."""
        self._client = MlflowClient(tracking_uri=_store(run.output))
        self._warnings: list[str] = []
        self._start = run.last_round
        self._run_id = kept_run_id(run.output, self.name, run.resumed, lambda: self._created(run))
        known = self._client.get_run(self._run_id).data.params
        values = {key: str(value)[:_LONGEST] or "-" for key, value in (run.settings | run.facts).items()}
        new = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=new[start : start + _MOST_PARAMS])
        changed = [RunTag(f"after-{run.last_round}.{k}", v) for k, v in values.items() if known.get(k, v) != v]
        self._client.log_batch(self._run_id, tags=changed)
        self._client.update_run(self._run_id, status="RUNNING")

    def _created(self, run: RunFacts) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        made = self._client.create_run(experiment, run_name=Path(run.output).absolute().name)
        return str(made.info.run_id)

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        """Log the round's scalars."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, server_round) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def on_evaluation(self, server_round: int, scalars: dict[str, float]) -> None:
        """Log the evaluation's scalars."""
        self.on_round(server_round, scalars)

    def on_warning(self, server_round: int, message: str) -> None:
        """Keep the warning for the end."""
        self._warnings.append(f"round {server_round}: {message}")

    def on_end(self, summary: dict[str, Any]) -> None:
        """Write warnings and summary; the run is FINISHED, KILLED if it was stopped, FAILED if it is no better, too."""
        if self._warnings:
            text = "".join(f"{line}\n" for line in self._warnings)
            self._client.log_text(self._run_id, text, f"warnings-after-{self._start}.txt")
        tags = [RunTag(f"end.{key}", str(value)[:_LONGEST]) for key, value in summary.items()]
        self._client.log_batch(self._run_id, tags=tags)
        status = {"finished": "FINISHED", "stopped": "KILLED"}.get(summary["status"], "FAILED")
        self._client.set_terminated(self._run_id, status)


def _store(output: Path) -> str:
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if given:
        return given
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files want the user's consent: this is the default here
    return (output.absolute() / "mlruns").as_uri()
