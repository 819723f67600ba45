"""The command of a measurement, as it stands beside its numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

PLACES = ("--data", "--debian", "--folder", "--rows", "--work")


def command(module: str = "", places: Sequence[str] = PLACES) -> str:
    """Return this process's command line, without the places of files.

    Args:
        module: what `python -m` runs; the program itself if empty.
        places: options that say where files lie, each with one value.
    """
    return " ".join(["python", "-m", module or _program(), *without_places(sys.argv[1:], places)])


def without_places(arguments: Sequence[str], places: Sequence[str] = PLACES) -> list[str]:
    """Return a command line without the options that say where files lie: they change no result."""
    found, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in places:
            skip = True
        elif not argument.startswith(tuple(f"{place}=" for place in places)):
            found.append(argument)
    return found


def _program() -> str:
    """Return the module that runs as the program, as `python -m` takes it."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]
