"""`zo-asr hub push | pull`: adapters as repositories on the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from zo_common.bar import working
from zo_common.cli import AsJson, command_group, run_typer
from zo_common.console import printable

app = command_group("Publish adapters on the Hugging Face hub, and fetch them.")

Repository = Annotated[str, typer.Argument(help="Hub id, such as user/whisper-tiny-en-scotland.", show_default=False)]


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a ledger.", show_default=False)],
    repository: Repository,
    base: Annotated[str, typer.Option(help="Hub id of the base; default: the one the ledger names.")] = "",
    revision: Annotated[str, typer.Option(help="Commit of the base; default: the one in the hub's cache.")] = "",
    data: Annotated[str, typer.Option(help="Training data: a data set's hub id, or a text for the card.")] = "",
    license: Annotated[str, typer.Option(help="The hub's name of the license, such as cc-by-4.0.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[
        Path | None, typer.Option(help="Write the repository's files to this new folder, and publish nothing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a run's ledger with its description, result and model card, without recordings and weights."""
    with working("writing the adapter" if dry_run is not None else "publishing the adapter"):
        from zo_common.adapters.hub import known_revision
        from zo_common.adapters.hub import push as upload
        from zo_common.adapters.published import Publication, write_adapter
        from zo_common.adapters.source import find_ledger
        from zo_common.ledger.file import read_ledger_header

        named = base or read_ledger_header(find_ledger(run)).model
        publication = Publication(named, revision or known_revision(named), data, license)
        if dry_run is not None:
            config = write_adapter(run, dry_run, repository, publication)
            address = str(dry_run)
        else:
            with tempfile.TemporaryDirectory(prefix="zo-asr-hub-") as scratch:
                config = write_adapter(run, Path(scratch), repository, publication)
                address = upload(Path(scratch), repository, private=private)
    if as_json:
        print(json.dumps({"repository": repository, "address": address, "checksum": config.checksum}))
    else:
        print(f"{'wrote' if dry_run else 'published'} {address}: {config.rounds} rounds, checksum {config.checksum}")


@app.command()
def pull(
    repository: Repository,
    output: Annotated[
        Path | None, typer.Argument(help="A folder; default: the hub's cache.", show_default=False)
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit; default: the newest.")] = "",
    as_json: AsJson = False,
) -> None:
    """Fetch an adapter, check its ledger against its description, and print its path."""
    with working("fetching the adapter"):
        from zo_common.adapters.hub import pull as download
        from zo_common.adapters.published import check_adapter

        folder = download(repository, output, revision or None)
        config = check_adapter(folder)
    if as_json:
        found = {"folder": str(folder), "base": config.base_model_name_or_path, "revision": config.revision}
        print(json.dumps(found | {"checksum": config.checksum, "rounds": config.rounds}))
    else:
        base = printable(config.base_model_name_or_path)  # in the words of whoever published it
        print(f"{folder}: {config.rounds} rounds on {base}, checksum {config.checksum}")


main = run_typer(app)

if __name__ == "__main__":
    main()
