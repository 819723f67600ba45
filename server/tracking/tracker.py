"""The interface of an experiment tracker, and the description of a run that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFacts:
    """Description of a run before its next round.

    Attributes:
        output: the run's folder.
        settings: all settings, by kebab-case keys.
        facts: version of the software, base model's checksum and revision, devices, and a summary of the data.
        last_round: the last round in the ledger; 0 before the first.
        resumed: whether the run continues an existing ledger.
    """

    output: Path
    settings: dict[str, Any]
    facts: dict[str, Any]
    last_round: int
    resumed: bool


class Tracker:
    """A tracker whose every method does nothing; a subclass overrides those that it needs.

    It is made without arguments, and called from one thread of its own. A tracker that raises an exception, or does not
    return within two minutes, gets no further calls; the run continues.

    Attributes:
        name: its name in warnings.
    """

    name = "tracker"

    def on_run_start(self, run: RunFacts) -> None:
        """Called once, before the next round."""

    def on_round(self, server_round: int, scalars: dict[str, float]) -> None:
        """Called after each round, once it is in the ledger; a number that the round does not have is left out."""

    def on_evaluation(self, server_round: int, scalars: dict[str, float]) -> None:
        """Called after each evaluation; a resumed run may repeat its last one."""

    def on_warning(self, server_round: int, message: str) -> None:
        """Called with each warning of the server, and the last round that is done."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """Called once.

        Args:
            summary: `status` ("finished", "no better", "stopped" or "failed") and `server_round`; unless the run
                failed, also `checksum`, and `reason` if it was stopped, or its result is no better than its start.
        """
