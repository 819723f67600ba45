"""TensorBoard: event files in `<output>/tensorboard`."""

from __future__ import annotations

import json
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from server.tracking.tracker import RunFacts, Tracker


class TensorBoardTracker(Tracker):
    """Scalars by round; a resumed run writes to the same folder, and rounds that it repeats replace the others."""

    name = "tensorboard"

    def on_run_start(self, run: RunFacts) -> None:
        """Open an event file and write the description of the run."""
        purge = run.last_round + 1 if run.resumed else None
        self._writer = SummaryWriter(str(run.output / "tensorboard"), purge_step=purge)
        self._add_text("run", json.dumps(run.settings | run.facts, indent=1, ensure_ascii=False), run.last_round)

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        """Write the round's scalars."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def on_evaluation(self, server_round: int, scalars: dict[str, float]) -> None:
        """Write the evaluation's scalars."""
        self.on_round(server_round, scalars)

    def on_warning(self, server_round: int, message: str) -> None:
        """Write the warning."""
        self._add_text("warnings", message, server_round)

    def on_end(self, summary: dict[str, Any]) -> None:
        """Write the summary and close the file."""
        self._add_text("end", json.dumps(summary, indent=1, ensure_ascii=False), summary["server_round"])
        self._writer.close()

    def _add_text(self, name: str, text: str, server_round: int) -> None:
        """Write preformatted text: TensorBoard shows texts as Markdown."""
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), server_round)
        self._writer.flush()
