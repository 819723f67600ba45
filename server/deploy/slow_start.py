"""A warning where Flower does not get the server's process of a run started."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from server.deploy.deployment import Deployment
from server.deploy.flower import FlowerError, run_status

logger = logging.getLogger(__name__)
_PATIENCE_SECONDS = 60.0
_NOT_STARTED = ("pending", "starting")


@contextmanager
def watched_start(deployment: Deployment, run_id: str) -> Iterator[None]:
    """Warn once within a block if the run has not started after a minute.

    SuperLink takes a process back that has not reported 30 s after it was launched, and its log then says "Runtime
    task-token authentication failed". SuperExec launches another one, without end on a machine that is busy enough.
    """
    ended = Event()
    Thread(target=_watch, args=(deployment, run_id, ended), name="slow-start", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(deployment: Deployment, run_id: str, ended: Event) -> None:
    while not ended.wait(_PATIENCE_SECONDS):
        try:
            status, _ = run_status(deployment, run_id)
        except FlowerError:  # SuperLink is being restarted; `follow` reports what lasts
            continue
        if status in _NOT_STARTED and not ended.is_set():
            logger.warning(
                f"the server's process has not started for {_PATIENCE_SECONDS:.0f} s: Flower gives each try 30 s, so "
                f"free processor time on this machine, or see whether SuperExec runs ({deployment.root / 'log'})"
            )
        return
