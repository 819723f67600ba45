"""Devices that let evaluations wait: they are asked less and less, as in rounds, whatever they answer to training."""

from __future__ import annotations

from collections.abc import Container, Iterable

from server.devices.back_off import MOST_SKIPPED_WAITING, WAITED_FOR, skipped
from server.devices.roster import Member

ABSENT = WAITED_FOR | {"no-answer"}


class Absences:
    """Evaluations in a row that waited for each client; from the third on it skips the next 1, 2, 4, 8 of them."""

    def __init__(self) -> None:
        self._waits: dict[int, int] = {}
        self._skips: dict[int, int] = {}

    def willing(self, members: Iterable[Member]) -> list[Member]:
        """Return the members to ask in the next evaluation: all, if none is left."""
        members = list(members)
        found = [member for member in members if not self._skips.get(member.client_id)]
        for member in members:
            self._skips[member.client_id] = max(0, self._skips.get(member.client_id, 0) - 1)
        return found or members

    def note(self, asked: Iterable[Member], absent: Container[int]) -> None:
        """Record an evaluation.

        Args:
            absent: the nodes that it waited for in vain.
        """
        for member in asked:
            client = member.client_id
            waits = self._waits[client] = self._waits.get(client, 0) + 1 if member.node_id in absent else 0
            if skips := skipped(waits, MOST_SKIPPED_WAITING):
                self._skips[client] = skips
