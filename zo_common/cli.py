"""Shared behaviour of the command lines: a user error is one sentence on stderr, exit status 1, no traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from zo_common.errors import ZOError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
"""The option of every command whose result another program may want."""


def run_typer(app: typer.Typer) -> Callable[[], None]:
    """An entry point for a Typer app that prints user errors plainly."""

    def main() -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
        try:
            app()
        except ZOError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except OSError as error:
            print(f"error: {error.filename or 'a file'}: {error.strerror or error}: check the path", file=sys.stderr)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return main
