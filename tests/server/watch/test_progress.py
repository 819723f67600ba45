"""What a run shows: rounds and messages, or warnings alone on a quiet console."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from server.run.log import RoundReport
from server.watch.progress import RunProgress
from zo_common.cli import progress_console


def _shown(console: Console) -> None:
    with RunProgress(console, 2) as progress:
        logging.getLogger("server.rounds").info("a device says something")
        logging.getLogger("server.rounds").warning("an answer is [refused]")
        progress.events().on_round(RoundReport(1, 0.1, 3, 3, loss=2.5))


def test_rounds_and_messages_are_lines_where_there_is_no_terminal() -> None:
    console = Console(file=(said := io.StringIO()), width=120)
    _shown(console)

    lines = said.getvalue().splitlines()
    assert lines[:2] == ["a device says something", "an answer is [refused]"]
    assert lines[2].startswith("round 1/2: loss 2.500")


def test_a_quiet_console_has_warnings_alone_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    _shown(Console(quiet=True))

    found = capsys.readouterr()
    assert found.out == "" and found.err == "an answer is [refused]\n"


def test_a_terminal_shows_what_comes_before_the_first_round_until_it_ends() -> None:
    console = Console(file=(said := io.StringIO()), width=120, force_terminal=True)
    with RunProgress(console, 2, "loading the model") as progress:
        progress._progress.refresh()
        before = said.getvalue()
        progress.events().on_round(RoundReport(1, 0.1, 3, 3, loss=2.5))
        said.truncate(0)
        progress._progress.refresh()

    assert "loading the model" in before
    assert "loading the model" not in said.getvalue() and "1/2" in said.getvalue()


@pytest.mark.parametrize(("answered", "text"), [(3, "no loss is sent"), (0, "no valid reply")])
def test_a_round_without_a_loss(answered: int, text: str) -> None:
    """Replies with noise or under masks hold none."""
    said = io.StringIO()
    with RunProgress(Console(file=said, width=200), 2) as progress:
        progress.events().on_round(RoundReport(1, 0.1, 3, answered))
    assert f"round 1/2: {text}, 0 B up" in said.getvalue()


def test_a_message_is_one_line_and_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = f"[/b] :smile: {'a long message ' * 20}end"
    console = progress_console(quiet=False, as_json=False)
    console.print(f"results in {said}")
    with RunProgress(console, 320) as progress:
        progress.say(said)
        progress.round(RoundReport(100, 0.1, 3, 3, loss=2.5, evaluation={"loss": 2.125}, seconds=1234.5))
    shown = capsys.readouterr().out.splitlines()

    assert shown == [f"results in {said}", said, "round 100/320: loss 2.500, 0 B up, held-out loss 2.125, 1234.5 s"]
