"""Live progress of training on one machine: a bar with loss, held-out loss, forward passes a second and time left."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from server.run.log import GUARD_LOG, RoundReport, read_rows
from server.watch.progress import RunProgress
from zo_common.config.run import RunConfig


class TrainProgress(RunProgress):
    """As `RunProgress`; the held-out loss is that of the guard's last check or of an evaluation.

    Attributes:
        last_round: the last ledger round that was reported.
    """

    def __init__(self, console: Console, config: RunConfig) -> None:
        super().__init__(console, config.num_server_rounds, "model, loss check, first evaluation")
        self.last_round = 0
        self._forwards = config.estimator_config.forwards * config.local_steps
        self._looks = Path(config.output) / GUARD_LOG

    def _text(self, report: RoundReport) -> str:
        self.last_round = report.server_round
        parts = [f"loss {report.loss:.3f}" if report.loss is not None else "no valid loss"]
        if (held_out := self._held_out(report)) is not None:
            parts.append(f"held-out loss {held_out:.3f}")
        if report.seconds > 0:
            parts.append(f"{self._forwards / report.seconds:.2g} forwards/s")
        return ", ".join(parts)

    def _held_out(self, report: RoundReport) -> float | None:
        if report.evaluation:
            return float(report.evaluation["loss"])
        looks = read_rows(self._looks) if self._looks.exists() else []
        loss = looks[-1].get("loss") if looks else None
        return float(loss) if loss is not None else None
