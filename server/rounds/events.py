"""Hooks that a run calls to report its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from server.guards.guard import Guard
from server.run.log import RoundReport, RunLog
from server.run.model import GlobalModel


class EvaluatedRun(Protocol):
    """Interface of a run for an evaluation; implemented by `server.rounds.federation.Federation`."""

    @property
    def global_model(self) -> GlobalModel | None: ...

    @property
    def resumed(self) -> bool: ...

    @property
    def guard(self) -> Guard: ...

    @property
    def log(self) -> RunLog: ...

    @property
    def events(self) -> Events: ...

    def evaluate_on_clients(self, server_round: int) -> tuple[dict[str, Any], list[dict[str, Any]]] | None: ...


@dataclass
class Events:
    """Functions that a run calls. Its messages to the operator go to the loggers of its modules.

    Attributes:
        on_round: called after each round, once it is in the ledger.
        on_evaluate: called when an evaluation is due, with the round and the run; its result goes into the report.
        on_model: called once, with the server's model, or None without one.
        on_stage: called during long tasks, with a label, units done and total units.
    """

    on_round: Callable[[RoundReport], None] = lambda report: None
    on_evaluate: Callable[[int, EvaluatedRun], dict[str, Any] | None] = lambda server_round, run: None
    on_model: Callable[[GlobalModel | None], None] = lambda global_model: None
    on_stage: Callable[[str, int, int], None] = lambda label, done, total: None
