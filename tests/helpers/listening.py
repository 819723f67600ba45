"""What our packages' loggers say, for tests to look at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from zo_common.console import PACKAGES, LineHandler, shown

_open = ExitStack()


def listen(*names: str) -> list[str]:
    """The messages from now on, as they come, until the test ends.

    Args:
        names: of the loggers, with those below them; default: all of ours.
    """
    heard: list[str] = []
    listen_with(heard.append, *names)
    return heard


def listen_with(write: Callable[[str], None], *names: str) -> None:
    """As `listen`, for a function."""
    handler = LineHandler(write)
    handler.addFilter(lambda record: any(f"{record.name}.".startswith(f"{name}.") for name in names or PACKAGES))
    _open.enter_context(shown(handler))


def stop_listening() -> None:
    """All messages are dropped again, as in a program that shows none."""
    _open.close()
