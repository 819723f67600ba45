"""A guard that looks at the server's weights before a round is recorded, and takes rounds back exactly.

A round that is worse is refused before it is recorded; where the guard looks only at every n-th round, the rounds since
its last look are undone by a record of their negated coefficients, which devices apply like any other: updates commute,
so that everybody is back at the weights of that look, bit for bit.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable

from server.guards.guard import Contributions
from server.guards.logged_guard import LoggedGuard, Look, check_state, negated
from server.run.model import GlobalModel
from server.run.state import RunState
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Record
from zo_common.ledger.replay import apply_all

logger = logging.getLogger(__name__)
__all__ = ["Look", "OnStage", "RoundGuard", "negated"]
OnStage = Callable[[str, int, int], None]


class RoundGuard(LoggedGuard[Look]):
    """Looks at the weights of every `guard-every`-th round and of the last one.

    Which look is worse than the good ones before, the kinds of guard say.

    Args:
        of: as of `LoggedGuard`.
    """

    def __init__(self, config: RunConfig, held: GlobalModel, of: str, on_stage: OnStage) -> None:
        super().__init__(config, of)
        self._held, self._on_stage = held, on_stage

    @abstractmethod
    def _look(self) -> Look:
        """What the present weights are like."""

    @abstractmethod
    def _worse(self, found: Look) -> str:
        """What is worse than at the best good look; empty if nothing is. A NaN is worse."""

    def begin(self, state: RunState) -> None:
        """Take up a run: from its log where it is resumed, else the weights as they are count as good."""
        super().begin(state)
        if self._best is None:
            if last := state.ledger.ledger.last_round:
                logger.info(f"guard: no looks of earlier rounds are known, round {last} counts as good")
            self._note(last, self._look(), good=True)

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """As `Guard.review`."""
        last = server_round >= self.final_round
        since = self._state.ledger.ledger.records[self._good_round :]
        moved = bool(contributions) or any(record.contributions for record in since)
        # where no device could answer, the weights may be why
        due = last or not contributions or server_round % self._config.guard_every == 0
        if not (moved and due):
            return contributions, ""
        found = self._look()
        word = self._worse(found)
        if word:
            contributions = self._undo(contributions, since)
            rounds = f"rounds {self._good_round + 1} to {server_round} are" if since else "this round is"
            word = f"{word}: {rounds} undone"
        self._note(server_round, found, good=not word)
        return contributions, word

    def _undo(self, contributions: Contributions, since: tuple[Record, ...]) -> Contributions:
        """Take this round's contributions out of the weights, and those since the last good look by a record."""
        back = negated(since)
        apply_all(self._held.state, [u for c in contributions for u in c.updates()], sign=-1)
        apply_all(self._held.state, [u for c in back for u in c.updates()])
        check_state(self._held.state.checksum(), self._state.ledger.ledger, self._good_round)
        return back
