"""Write `docs/commands.md` from the commands' own help: `python -m benchmarks.pages.commands` after a change of them.

`--check` fails if the page is out of date.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import typer

from benchmarks.pages.generated import write_or_check
from zo_common.command import GROUPS

PAGE = Path(__file__).parent.parent.parent / "docs" / "commands.md"
HEAD = """\
# Commands

All commands with their arguments and options. `zo-asr GROUP COMMAND --help` says the same in a terminal. The keys of
`--set` are the settings of a run: [settings.md](settings.md).
"""


def page() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for name, (module, says) in GROUPS.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        lines += [f"## zo-asr {name}", "", says, "", *_commands(group, f"zo-asr {name}")]
    return "\n".join(lines).rstrip() + "\n"


def _commands(command: Any, path: str) -> Iterator[str]:
    """Return a command's own part, or that of a group and of its commands."""
    inner = getattr(command, "commands", None)
    if inner is None or command.invoke_without_command:
        yield from _usage(command, path)
    for name in sorted(inner or ()):
        if not inner[name].hidden:
            spoken = path if name == getattr(command, "default_command", "") else f"{path} {name}"
            yield from ([f"### {spoken}", ""] if spoken != path else [])
            yield _plain(inner[name].help)
            yield ""
            yield from _commands(inner[name], spoken)


def _usage(command: Any, path: str) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    yield f"    {path} {' '.join(command.collect_usage_pieces(context))}"
    yield ""
    said = _help_of_parameters(command.callback)
    rows = [(each.name, record) for each in command.get_params(context) if (record := each.get_help_record(context))]
    rows = [(name, record) for name, record in rows if record[0] != "--help"]
    if rows:
        yield "| argument or option | meaning |"
        yield "|---|---|"
        for name, (names, says) in rows:
            missing = said.get(name, "") if names[0] != "-" and said.get(name, "") not in says else ""
            yield f"| `{_plain(names)}` | {_plain(f'{missing} {says}')} |"
        yield ""


def _help_of_parameters(function: Callable[..., Any]) -> dict[str, str]:
    """Return parameter → its `typer.Argument` or `typer.Option` help: some releases of click drop that of arguments."""
    hints = get_type_hints(function, include_extras=True)
    found = {name: getattr(hint, "__metadata__", (None,))[0] for name, hint in hints.items()}
    return {name: getattr(info, "help", None) or "" for name, info in found.items()}


def _plain(text: str | None) -> str:
    """Return one line that may stand in a table."""
    return " ".join((text or "").split()).replace("\\[", "[").replace("|", r"\|")


def main() -> None:
    """Write the page, or check it."""
    write_or_check(PAGE, page(), "benchmarks.pages.commands", "the commands")


if __name__ == "__main__":
    main()
