"""The trackers of a run, driven by its events and the server's warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from server.rounds.events import EvaluatedRun, Events
from server.rounds.federation import Federation
from server.run.log import RoundReport
from server.tracking.caller import PATIENCE, Call, TrackerCaller
from server.tracking.facts import facts_of
from server.tracking.scalars import round_scalars, table_scalars
from server.tracking.tracker import RunFacts, Tracker
from zo_common.config.run import RunConfig
from zo_common.speech.recordings import Recordings

logger = logging.getLogger(__name__)
_SERVER = "server"  # the logger above those of all its modules


class Tracking(logging.Handler):
    """Passes a run's events and the server's warnings to trackers; a context manager, whose end is the run's.

    A tracker that raises an exception, or does not return from a call, is dropped with one warning.

    Args:
        patience: seconds for a call.
    """

    def __init__(self, config: RunConfig, trackers: Iterable[Tracker], patience: float = PATIENCE) -> None:
        super().__init__(logging.WARNING)
        self._config = config
        self._trackers = [TrackerCaller(each, patience) for each in trackers]
        self._round = 0
        self._summary: dict[str, Any] = {"status": "failed"}
        self._started = False
        self._early: list[str] = []  # warnings before the start

    def __enter__(self) -> Tracking:
        if self._trackers:
            logging.getLogger(_SERVER).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_SERVER).removeHandler(self)
        if self._started:
            summary = {**self._summary, "server_round": self._round}
            self._call_all(lambda tracker: tracker.on_end(summary))
        for tracker in self._trackers:
            tracker.close()
        self.close()

    def watched(self, events: Events) -> Events:
        """Return events that also report to the trackers."""
        if not self._trackers:
            return events

        def on_round(report: RoundReport) -> None:
            self._round = report.server_round
            scalars = round_scalars(report, self._config)
            self._call_all(lambda tracker: tracker.on_round(report.server_round, scalars))
            events.on_round(report)

        def on_evaluate(server_round: int, run: EvaluatedRun) -> dict[str, Any] | None:
            found = events.on_evaluate(server_round, run)
            if found is not None:
                self._evaluated(server_round, table_scalars(found, "evaluation"))
            return found

        return replace(events, on_round=on_round, on_evaluate=on_evaluate)

    def start(self, federation: Federation, held_out: Recordings | None = None) -> None:
        """Tell the trackers that the run starts, and the server's warnings so far."""
        if not self._trackers:
            return
        self.begin(facts_of(federation, held_out))

    def begin(self, run: RunFacts) -> None:
        """Tell the trackers that a run of this description starts, and the warnings so far."""
        self._started, self._round = True, run.last_round
        self._call_all(lambda tracker: tracker.on_run_start(run))
        for message in self._early:
            self._warn(message)

    def finish(
        self, federation: Federation, stopped: str = "", verdict: str = "", comparison: dict[str, Any] | None = None
    ) -> None:
        """Set the summary that the trackers get at the end; without this call the run has failed.

        Args:
            stopped: why the run stopped before its last round.
            verdict: what is wrong with its result, as `verdict_on`.
            comparison: change on the held-out split, with its interval; reported as an evaluation of the last round.
        """
        self._round = federation.last_round
        if comparison is not None:
            self._evaluated(self._round, table_scalars(comparison, "comparison"))
        status = "stopped" if stopped else "no better" if verdict else "finished"
        self._summary = {"status": status, "checksum": f"{federation.checksum:016x}"}
        if stopped or verdict:
            self._summary["reason"] = stopped or verdict

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning to the trackers, unless it is about one of them."""
        if record.name == __name__:
            return
        if self._started:
            self._warn(record.getMessage())
        else:
            self._early.append(record.getMessage())

    def _warn(self, message: str) -> None:
        self._call_all(lambda tracker: tracker.on_warning(self._round, message))

    def _evaluated(self, server_round: int, scalars: dict[str, float]) -> None:
        self._call_all(lambda tracker: tracker.on_evaluation(server_round, scalars))

    def _call_all(self, call: Call) -> None:
        for tracker in list(self._trackers):
            try:
                tracker.call(call)
            except Exception as error:  # of a library, a disk or a network: none of them may end the run
                if tracker in self._trackers:  # a call within a call may have failed before
                    self._trackers.remove(tracker)
                    tracker.close()
                    logger.warning(f"{tracker.name} gets no more of this run: {type(error).__name__}: {error}")
