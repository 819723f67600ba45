"""The `zo-asr` command: groups of commands, each imported when it is used.

The command lines of server, devices and simulations are separate programs (`GROUPS`); this module puts them under one
name, with one tab completion. Listing groups does not import them, so a device needs none of the server's packages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from zo_common.cli import run_typer

GROUPS: dict[str, tuple[str, str]] = {
    "train": ("train.cli", "Fine-tune a recogniser on this machine, with forward passes alone."),
    "sim": ("simulations.cli", "Simulate federations of speech devices, and make models and recordings for them."),
    "transcribe": ("zo_common.adapters.transcribe_cli", "Transcribe recordings, by a base model with a ledger on."),
    "adapt": ("client.adapt.cli", "Adapt a recogniser to a recording by itself, without its text."),
    "data": ("zo_common.speech.cli", "Look at recordings before training, convert and cut them."),
    "hub": ("zo_common.adapters.hub_cli", "Publish adapters on the Hugging Face hub, and fetch them."),
    "ledger": ("server.commands.ledger", "Look at, check, replay and combine ledgers."),
    "report": ("server.report.cli", "Write a page about a run that has ended: curve, speakers, words, transcripts."),
    "server": ("server.deploy.cli", "Run a federation on many machines."),
    "worker": ("client.worker.cli", "Keep a device's model and recordings ready between messages."),
    "privacy": ("server.commands.privacy", "Plan and check differential privacy."),
}
"""Name → module with a Typer `app`, and what `zo-asr --help` says of it."""


class _Groups(TyperGroup):
    """Commands that are imported when they are run, or completed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(GROUPS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the placeholder for a group in lists and suggestions."""
        return TyperCommand(cmd_name, help=GROUPS[cmd_name][1]) if cmd_name in GROUPS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return (name, _loaded(name), rest) if name in GROUPS else (name, command, rest)


def _loaded(name: str) -> Any:
    command = typer.main.get_command(importlib.import_module(GROUPS[name][0]).app)
    command.name = name
    return command


app = typer.Typer(
    cls=_Groups,
    help="Adapt speech recognisers where the recordings are, with forward passes alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"zo-asr {importlib.metadata.version('federated-zo-asr')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Adapt speech recognisers where the recordings are, with forward passes alone."""


main = run_typer(app)


def _alias(group: str) -> Callable[[], None]:
    """Return the entry point of a group under its old name, which prints a deprecation note in a terminal."""

    def run() -> None:
        if sys.stderr.isatty():
            old = Path(sys.argv[0]).name
            print(f"{old} is now 'zo-asr {group}', the next release has the old name no more", file=sys.stderr)
        importlib.import_module(GROUPS[group][0]).main()

    return run


sim, adapt, ledger = _alias("sim"), _alias("adapt"), _alias("ledger")
server, worker, privacy = _alias("server"), _alias("worker"), _alias("privacy")
