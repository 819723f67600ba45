"""A guard that checks the server's weights before a round is recorded, and undoes rounds exactly.

A round that is worse is refused before it is recorded. If the guard checks only every n-th round, it undoes the rounds
since its last check by a record of their negated coefficients, which devices apply like any other. Updates commute, so
the weights are again those of that check, bit for bit.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable

from server.guards.guard import Contributions
from server.guards.logged_guard import Check, LoggedGuard, check_state, negated
from server.run.model import GlobalModel
from server.run.state import RunState
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Record
from zo_common.ledger.replay import apply_all

logger = logging.getLogger(__name__)
__all__ = ["Check", "OnStage", "RoundGuard", "negated"]
OnStage = Callable[[str, int, int], None]


class RoundGuard(LoggedGuard[Check]):
    """Checks the weights of every `guard-every`-th round and of the last one.

    Subclasses define which check is worse than the good ones before.

    Args:
        of: as in `LoggedGuard`.
    """

    def __init__(self, config: RunConfig, global_model: GlobalModel, of: str, on_stage: OnStage) -> None:
        super().__init__(config, of)
        self._global_model, self._on_stage = global_model, on_stage

    @abstractmethod
    def _measure(self) -> Check:
        """Measure the present weights."""

    @abstractmethod
    def _worse(self, found: Check) -> str:
        """Return what is worse than at the best good check; empty if nothing is. NaN counts as worse."""

    def begin(self, state: RunState) -> None:
        """Start guarding a run: a resumed one from its log; otherwise the present weights count as good."""
        super().begin(state)
        if self._best is None:
            if last := state.ledger.ledger.last_round:
                logger.info(f"guard: no checks of earlier rounds are known, round {last} counts as good")
            self._note(last, self._measure(), good=True)

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """As `Guard.review`."""
        last = server_round >= self.final_round
        since = self._state.ledger.ledger.records[self._good_round :]
        moved = bool(contributions) or any(record.contributions for record in since)
        # if no device could answer, the weights may be the cause
        due = last or not contributions or server_round % self._config.guard_every == 0
        if not (moved and due):
            return contributions, ""
        found = self._measure()
        message = self._worse(found)
        if message:
            contributions = self._undo(contributions, since)
            rounds = f"rounds {self._good_round + 1} to {server_round} are" if since else "this round is"
            message = f"{message}: {rounds} undone"
        self._note(server_round, found, good=not message)
        return contributions, message

    def _undo(self, contributions: Contributions, since: tuple[Record, ...]) -> Contributions:
        """Undo this round's contributions, and those since the last good check; return what the record then holds."""
        back = negated(since)
        apply_all(self._global_model.state, [u for c in contributions for u in c.updates()], sign=-1)
        apply_all(self._global_model.state, [u for c in back for u in c.updates()])
        check_state(self._global_model.state.checksum(), self._state.ledger.ledger, self._good_round)
        return back
