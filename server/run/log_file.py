"""The server's messages of a run in `<output>/run.log`, which the live page shows the end of."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from zo_common.console import PACKAGES, LineHandler, printable

RUN_LOG = "run.log"


@contextmanager
def log_file(output: Path) -> Iterator[None]:
    """Append what our packages log within a block to the run's log file; a failed write, as on a full disk, is ignored.

    Levels stay as they are: messages below a warning are written where a program shows them too.
    """
    handler = LineHandler(lambda line: _append(output / RUN_LOG, line))
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    with ExitStack() as stack:
        for name in PACKAGES:
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        yield


def _append(path: Path, line: str) -> None:
    with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(printable(line) + "\n")
