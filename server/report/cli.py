"""`zo-asr report`: a page about a run that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zo_common.bar import working
from zo_common.binary.durable import PRIVATE, write_durably
from zo_common.cli import AsJson, run_typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The run's folder, such as results/mine or runs/NAME.")],
    output: Annotated[Path | None, typer.Option(help="The file to write; default: report.html in the folder.")] = None,
    transcripts: Annotated[int, typer.Option(min=0, help="Transcripts shown; 0 leaves all texts out.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Write a page that stands alone: curve, speakers, words mended and broken, transcripts before and after."""
    with working("reading the run"):
        from server.report.data import read_report
        from server.report.page import render

        path = output or run / "report.html"
        found = read_report(run, transcripts)
        write_durably(path, render(found).encode(errors="backslashreplace"), PRIVATE)
    if as_json:
        print(json.dumps({"report": str(path), "bytes": path.stat().st_size, "transcripts": len(found.transcripts)}))
    else:
        print(f"wrote {path}")


main = run_typer(app)

if __name__ == "__main__":
    main()
