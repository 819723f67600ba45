"""The interface of a run's guard; this class accepts every round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.run.log import RoundReport
from server.run.state import RunState
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Contribution

Contributions = tuple[Contribution, ...]


@dataclass(frozen=True)
class Progress:
    """Effect of rounds on the held-out loss.

    Attributes:
        after, server_round: they are the rounds after + 1 … server_round.
        change: of the mean loss, nats a token or character; negative where it fell.
        error: its standard error.
        step_factor: `Guard.step_factor` of those rounds.
    """

    after: int
    server_round: int
    change: float
    error: float
    step_factor: float


class Guard:
    """A guard that never checks the weights; base class of the guards that do.

    Attributes:
        refusal: the reason under which replies of an undone round are counted.
    """

    refusal = "worse"

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    @property
    def final_round(self) -> int:
        """The ledger's round after which the run ends."""
        return self._config.num_server_rounds

    @property
    def step_factor(self) -> float:
        """Factor on the learning rate of the next round, at most 1."""
        return 1.0

    @property
    def closings(self) -> int:
        """Number of the ledger's records that the guard added: they undo rounds, or end the run."""
        return 0

    def begin(self, state: RunState) -> None:
        """Start guarding a run, before its first round or the first after a resume."""

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """Check the weights with a round's contributions applied.

        Returns:
            The contributions to record for the round, and the reason if they differ; the weights are those after the
            record.
        """
        return contributions, ""

    def stop_if_stuck(self) -> None:
        """Raise RunStopped if the run cannot continue."""

    def settle(self) -> RoundReport | None:
        """Add a record of the guard's own to the ledger, if one is due; return its line for the log.

        Called after each round, and when a run begins, until it returns None. Such a record undoes rounds or, after the
        last round, leads to the best state.
        """
        return None

    def progress(self) -> list[Progress] | None:
        """Return what rounds did to the held-out loss, check after check; None if it does not compare losses."""
        return None

    def scalars(self, server_round: int) -> dict[str, float]:
        """Return the numbers of the check after a round, by name; empty without one."""
        return {}

    def stop(self) -> None:
        """Note that the run stops before its last round: `settle` ends it. A resumed run continues from there."""

    def summary(self) -> dict[str, Any] | None:
        """Return the guard's findings for `evaluation.json`; None if it never checked."""
        return None
