"""Shared behaviour of the command lines: a user error is one sentence on stderr, exit status 1, no traceback.

SIGINT ends a command with status 130, SIGTERM with 143. Both are raised as exceptions, so that temporary files and
child processes are cleaned up.
"""

from __future__ import annotations

import errno
import io
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from zo_common.console import printable
from zo_common.errors import ZOError
from zo_common.paths import home_expanded

if TYPE_CHECKING:
    from rich.console import Console

_FULL = errno.ENOSPC, errno.EDQUOT
_OPTION = re.compile(r"((?:--)?[\w-]+=)((?:unix:)?~.*)", re.DOTALL)


def _in_home(argument: str) -> str:
    """Expand ~ in a command-line argument: `~/x`, but also `--output=~/x` and `output=~/x`, which shells leave."""
    found = _OPTION.fullmatch(argument)
    return found[1] + home_expanded(found[2]) if found else home_expanded(argument)


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
"""The option of every command whose result another program may read."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors alone.")]
"""The option of every command that shows progress."""

MOST_THREADS = 4096
"""CPU threads that a command or a run may be given."""

Threads = Annotated[int, typer.Option(min=0, max=MOST_THREADS, help="CPU threads; 0 takes torch's choice.")]
"""The option of every command that computes with torch."""


def progress_console(*, quiet: bool, as_json: bool) -> Console:
    """Return where a long command shows its progress: nowhere if quiet, on stderr if a JSON object goes to stdout.

    A message is one line, however long, and shown as it is: folders and speakers may be called `[b]` or `:key:`.
    """
    from rich.console import Console

    return Console(quiet=quiet, stderr=as_json, soft_wrap=True, highlight=False, markup=False, emoji=False)


def command_group(help: str) -> typer.Typer:
    """Return an app of named commands, also where it has one alone, whose user errors `run_typer` prints."""
    app = typer.Typer(help=help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_nothing)
    return app


def _nothing() -> None: ...


def run_typer(app: typer.Typer) -> Callable[[], None]:
    """Return an entry point for a Typer app that prints user errors as one sentence; ~ is expanded in all arguments."""

    def main() -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
        sys.argv[1:] = [_in_home(argument) for argument in sys.argv[1:]]
        try:
            with _sigterm_raises():
                app()
        except ZOError as error:
            _print_error(str(error))
            raise SystemExit(1) from None
        except OSError as error:
            remedy = "free space on its disk" if error.errno in _FULL else "check the path"
            _print_error(f"{error.filename or 'a file'}: {error.strerror or error}: {remedy}")
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return main


def _print_error(text: str) -> None:
    """Print an error, which may hold texts of a file or a program of other people: a terminal obeys none of it."""
    print(f"error: {printable(text.encode(errors='backslashreplace').decode())}", file=sys.stderr)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Make SIGTERM raise SystemExit(143), unless it has another handler or is ignored."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
