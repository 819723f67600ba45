"""`zo-asr ledger show | verify | replay | combine`: commands on ledger files."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from zo_common.bar import working
from zo_common.cli import MOST_THREADS, AsJson, command_group, run_typer
from zo_common.console import printable
from zo_common.errors import ConfigError
from zo_common.ledger.file import read_ledger, write_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record import Record

if TYPE_CHECKING:  # `show` and `--help` start without torch and transformers
    from zo_common.lattice.state import LatticeState
    from zo_common.models.load import LoadedModel

app = command_group("Look at, check, replay and combine ledgers.")
console = Console(soft_wrap=True, highlight=False)

LedgerPath = Annotated[Path, typer.Argument(help="A ledger file, such as results/…/ledger.zo.")]
Model = Annotated[str, typer.Option(help="The base model: a hub id or a directory; default: the one the ledger names.")]
Threads = Annotated[
    int,
    typer.Option(min=0, max=MOST_THREADS, help="CPU threads; 0 takes torch's choice. It cannot change the result."),
]


@app.command()
def show(
    ledger: LedgerPath,
    rounds: Annotated[bool, typer.Option(help="List every round.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a ledger holds: base model, trained tensors, settings, rounds."""
    found = read_ledger(ledger)
    header, size = found.header, ledger.stat().st_size
    updates = sum(c.coefficients.size for r in found.records for c in r.contributions)
    if as_json:
        settings = {key: value for key, value in asdict(header).items() if key not in ("base_checksum", "tensors")}
        contents = {"tensors": len(header.tensors), "rounds": found.last_round, "directions": updates, "bytes": size}
        listed = {"records": [_row(record) for record in found.records]} if rounds else {}
        print(json.dumps(settings | contents | {"checksum": _last_checksum(found) or None} | listed))
        return
    table = Table(title=str(ledger), title_justify="left", show_header=False)
    for label, value in (
        ("base model", f"{header.model}  fingerprint {header.fingerprint[:16]}…"),
        ("trained", f"{header.pattern}: {len(header.tensors)} tensors, scale {header.scale}"),
        ("estimator", f"{header.estimator}, epsilon {header.epsilon or 'auto'}, run seed {header.run_seed}"),
        ("settings", ", ".join(f"{k} {v}" for k, v in header.settings.items())),
        ("created", header.created),
        ("rounds", f"{found.last_round}, {updates} directions, {size} bytes"),
        ("checksum", _last_checksum(found) or "unknown until replayed"),
    ):
        table.add_row(label, Text(printable(value)))
    console.print(table)
    if rounds:
        for record in found.records:
            clients = ", ".join(str(c.client_id) for c in record.contributions) or "nobody"
            console.print(f"round {record.server_round}: checksum {record.checksum:016x}, clients {clients}")


def _last_checksum(ledger: Ledger) -> str:
    checksum = ledger.records[-1].checksum if ledger.records else ledger.header.base_checksum
    return f"{checksum:016x}" if checksum else ""


def _row(record: Record) -> dict[str, Any]:
    clients = [c.client_id for c in record.contributions]
    return {"round": record.server_round, "checksum": f"{record.checksum:016x}", "clients": clients}


@app.command()
def verify(
    ledger: LedgerPath,
    model: Model = "",
    threads: Threads = 0,
    deep: Annotated[bool, typer.Option(help="Replay on the base model, too; without it only the hash chain.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check the hash chain and, with the base model, that replay reaches the recorded checksum."""
    found = read_ledger(ledger, tolerate_torn=False)
    if not as_json:
        console.print(f"chain holds over {found.last_round} rounds")
    checksum = f"{_replayed(found, model, threads).checksum():016x}" if deep else None
    if as_json:
        print(json.dumps({"rounds": found.last_round, "checksum": checksum, "threads": threads or None}))
    elif deep:
        console.print(f"replayed checksum {checksum} with {threads or 'default'} threads")


@app.command("replay")
def replay_command(
    ledger: LedgerPath,
    output: Annotated[Path, typer.Argument(help="Directory to write; it must not exist or be empty.")],
    model: Model = "",
    threads: Threads = 0,
    rounds: Annotated[int, typer.Option(min=-1, help="Replay only the first rounds; -1 replays all.")] = -1,
    as_json: AsJson = False,
) -> None:
    """Replay a ledger on its base model into a directory for `from_pretrained`, processor included."""
    from zo_common.models.card import model_card
    from zo_common.models.export import export_model

    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} exists and is not empty: name a new directory")
    found = read_ledger(ledger)
    if rounds >= 0:
        if rounds > found.last_round:
            raise ConfigError(f"rounds is {rounds}, the ledger has {found.last_round}")
        found = Ledger(found.header, found.records[:rounds])
    base = model or found.header.model
    loaded = _base(found, model)
    state = _restored(loaded, found, threads)
    language = str(found.header.settings.get("language", ""))  # older ledgers lack it
    card = model_card(base, language or "en", rounds=found.last_round, trained=found.header.pattern)
    export_model(loaded.model, loaded.processor, output, language=language, card=card)
    checksum = f"{state.checksum():016x}"
    if as_json:
        print(json.dumps({"output": str(output), "rounds": found.last_round, "checksum": checksum}))
    else:
        console.print(f"wrote {output}, checksum {checksum}")


@app.command("combine")
def combine_command(
    ledgers: Annotated[list[Path], typer.Argument(help="Two or more ledgers on one base model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The combined ledger to write.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="One a ledger, in order; default 1 each. −1 takes an adaptation away.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add the adaptations of several ledgers on one base model."""
    from zo_common.ledger.combine import combine

    weights = weight or [1.0] * len(ledgers)
    if len(weights) != len(ledgers):
        raise ConfigError(f"{len(weights)} weights for {len(ledgers)} ledgers: give one --weight a ledger")
    if output.exists():
        raise ConfigError(f"{output} exists: name a new file")
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    joined = combine([read_ledger(path) for path in ledgers], weights, created)
    write_ledger(output, joined)
    size = output.stat().st_size
    if as_json:
        print(json.dumps({"output": str(output), "rounds": joined.last_round, "bytes": size}))
    else:
        console.print(f"wrote {output}: {joined.last_round} rounds, {size} bytes")


def _base(ledger: Ledger, model: str) -> LoadedModel:
    """Load a ledger's base model; if it has one adapter for each language, with the adapter of the run's language."""
    with working("loading the base model"):
        from zo_common.models.load import load_model

        return load_model(model or ledger.header.model, language=str(ledger.header.settings.get("language", "")))


def _replayed(ledger: Ledger, model: str, threads: int) -> LatticeState:
    return _restored(_base(ledger, model), ledger, threads)


def _restored(loaded: LoadedModel, ledger: Ledger, threads: int) -> LatticeState:
    """Return the state after a ledger's last round; a bar counts directions."""
    from zo_common.ledger.replay import replay, restore_state

    with working("comparing the base model with the ledger's"):
        state = restore_state(loaded.model, ledger.header, threads=threads or None)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replaying directions", total=None)
        replay(state, ledger, lambda done, total: progress.update(task, completed=done, total=total))
    return state


main = run_typer(app)

if __name__ == "__main__":
    main()
