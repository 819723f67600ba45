"""Log messages on a console: our packages are quiet until a program shows what their loggers say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

PACKAGES = ("zo_common", "client", "server", "simulations", "train")


def printable(text: str) -> str:
    """Return the text with everything but printable characters and line ends replaced: a terminal obeys none of it."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


class LineHandler(logging.Handler):
    """Logging handler that passes each message on as text, with the traceback of its exception, if any.

    Args:
        write: shows the text; if it raises, the message is lost and the program continues.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`."""
        try:
            self._write(self.format(record))
        except Exception:  # as in logging's own handlers: a failure to show a message must not end the program
            self.handleError(record)


@contextmanager
def shown(handler: logging.Handler) -> Iterator[None]:
    """Attach a handler to our packages' loggers, from level INFO on, within a block."""
    with ExitStack() as stack:
        for name in PACKAGES:
            logger = logging.getLogger(name)
            stack.callback(logger.removeHandler, handler)
            logger.addHandler(handler)
            stack.enter_context(at_level(name, min(logger.level or logging.INFO, logging.INFO)))
        yield


@contextmanager
def hushed(name: str) -> Iterator[None]:
    """Silence a package's logger within a block, e.g. for a check before a run that would log the same again."""
    with at_level(name, logging.CRITICAL):
        yield


@contextmanager
def at_level(name: str, level: int) -> Iterator[None]:
    """Give a logger a level within a block; afterwards it has its own again."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
