"""`zo-asr train`: fine-tune a recogniser on this machine."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from simulations.cli import Settings, SkipBad, parse_settings
from zo_common.cli import AsJson, Quiet, progress_console, run_typer
from zo_common.config.run import RunConfig
from zo_common.errors import RunStopped

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train(
    recordings: Annotated[str, typer.Argument(help="Folder, table or hub id: see docs/data.md.")],
    model: Annotated[
        str, typer.Option(help="Hub id or directory of the base model; default: the bundled Whisper-tiny.en.")
    ] = "",
    eval_split: Annotated[
        str | None, typer.Option(help="Split that results are reported on; default: test, where there is one.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Result directory; default results/<time>-train.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in all; default 320.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    skip_bad: SkipBad = False,
    setting: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a recogniser on recordings and their transcripts, in one process, with forward passes alone."""
    given = {"model": model, "eval-split": eval_split, "output": output and str(output), "num-server-rounds": rounds}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    chosen |= {"device": device, "resume": resume, "skip-bad": skip_bad} | parse_settings(setting)
    start = time.monotonic()
    console = progress_console(quiet=quiet, as_json=as_json)
    with console.status("reading settings and recordings"):
        from train.run import config_for

        config = config_for(recordings, chosen)
    numbers = _run(config, start, console)
    if as_json:
        print(json.dumps(numbers))
    if numbers["verdict"]:
        raise RunStopped(numbers["verdict"])


def _run(config: RunConfig, start: float, console: Console) -> dict[str, Any]:
    from server.watch.progress import headline
    from simulations.demo import leave_results
    from train.progress import TrainProgress
    from train.run import run_here

    command = shlex.join(["zo-asr", *sys.argv[1:]])
    try:
        with TrainProgress(console, config) as progress:
            run_here(config, progress.events(), on_start=lambda: _say_start(console, headline("train", config)))
        figure = f"train: split {config.eval_split}"
        return leave_results(config, 1, console, command, "train: one machine", start, figure=figure)
    except (KeyboardInterrupt, SystemExit) as end:  # of SIGINT and SIGTERM
        print(_interrupted(config, command), file=sys.stderr)
        raise SystemExit(end.code if isinstance(end, SystemExit) else 130) from None


def _say_start(console: Console, head: str) -> None:
    console.print(head)
    console.print("Model, loss check and first evaluation now; the bar appears with the first round", highlight=False)


def _interrupted(config: RunConfig, command: str) -> str:
    """Return a message on the run's progress, and how to resume it."""
    from zo_common.ledger.file import LEDGER_NAME, read_ledger

    path = Path(config.output) / LEDGER_NAME
    if not path.exists():
        return "interrupted before the first round: there is nothing to continue"
    words = sys.argv[1:]
    for option, value in (("--output", shlex.quote(config.output)), ("--resume", "")):
        if not any(word.split("=")[0] == option for word in words):
            command += f" {option} {value}".rstrip()
    return (
        f"interrupted after round {read_ledger(path).last_round} of {config.num_server_rounds}: continue with {command}"
    )


main = run_typer(app)

if __name__ == "__main__":
    main()
