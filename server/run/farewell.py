"""End of a failed run in Flower's log: the run's own sentence, and no traceback, whatever Flower adds."""

from __future__ import annotations

import logging

_FLOWER = logging.getLogger("flwr")
_LAST = "Exit Code: "  # how the last message of a Flower process begins that ends with an error


class RunFailed(Exception):
    """A run that failed, for Flower, which counts a simulation as failed by an exception of its ServerApp alone."""


class _Farewell(logging.Filter):
    """Takes the traceback of a `RunFailed` off, and ends Flower's last message with its sentence."""

    def __init__(self, failure: RunFailed) -> None:
        super().__init__()
        self._failure = failure

    def filter(self, record: logging.LogRecord) -> bool:
        """As `logging.Filter.filter`: all records pass."""
        if record.exc_info and record.exc_info[1] is self._failure:
            record.exc_info, record.exc_text = None, None
        elif record.levelno >= logging.ERROR and (message := record.getMessage()).startswith(_LAST):
            record.msg, record.args = f"{message}\n{self._failure}", ()
        return True


def failed(sentence: str) -> RunFailed:
    """Return the error for a simulation's ServerApp: Flower's log ends with the sentence, its run as failed."""
    failure = RunFailed(f"the run failed: {sentence}")
    _FLOWER.addFilter(_Farewell(failure))
    return failure
