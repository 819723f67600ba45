"""What a run asks of its guard; this one lets every round pass."""

from __future__ import annotations

from typing import Any

from server.run.log import RoundReport
from server.run.state import RunState
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Contribution

Contributions = tuple[Contribution, ...]


class Guard:
    """A guard that never looks at the weights, and what the guards that do have in common.

    Attributes:
        refusal: under which the replies of a round that is taken back are counted.
    """

    refusal = "worse"

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    @property
    def final_round(self) -> int:
        """The ledger's round after which the run is over."""
        return self._config.num_server_rounds

    @property
    def step_factor(self) -> float:
        """By which the learning rate of the next round is multiplied, at most 1."""
        return 1.0

    @property
    def closings(self) -> int:
        """Rounds of the ledger that no device was asked for: records that take others back, or end the run."""
        return 0

    def begin(self, state: RunState) -> None:
        """Take up a run, before its first round or the first after a resume."""

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """Look at the weights with a round's contributions in them.

        Returns:
            What to record for the round, and why that is something else; the weights are those after the record.
        """
        return contributions, ""

    def stop_if_stuck(self) -> None:
        """Raises RunStopped where the run cannot go on."""

    def settle(self) -> RoundReport | None:
        """Add a record of its own after the ledger's last one, where it is due; returns its line for the log.

        Called after each round, and when a run begins, until there is none: rounds are taken back, or, after the last
        round, the best state is gone to.
        """
        return None

    def stop(self) -> None:
        """The run stops before its last round: `settle` ends it. A resumed run goes on from there."""

    def summary(self) -> dict[str, Any] | None:
        """What it found, for `evaluation.json`; None where it did not look."""
        return None
