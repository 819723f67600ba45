"""`zo-asr server`: make a deployment folder, enroll devices, start and resume runs, show their status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from server.deploy.certificates import client_context
from server.deploy.deployment import Deployment, check_name
from server.deploy.flower_log import FLOWER_LOG, FlowerLog
from zo_common.cli import AsJson, Quiet, command_group, progress_console, run_typer
from zo_common.errors import ConfigError

if TYPE_CHECKING:
    from server.watch.progress import RunProgress

app = command_group("Run a federation on many machines.")
# text from devices and Flower is shown without markup
console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)

_RECENT = 20  # messages of a run from before it is followed

Folder = Annotated[Path, typer.Argument(help="The deployment folder.", metavar="DIR")]
Run = Annotated[str, typer.Argument(help="A run: the NAME of runs/NAME.toml.", metavar="RUN")]
MakeKeys = Annotated[
    bool, typer.Option("--make-keys", help="Make the devices' private keys here, for a trial on one's own machines.")
]
Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value: a setting other than the file's.")]


@app.command()
def init(
    folder: Folder,
    host: Annotated[list[str], typer.Option(help="A name or address by which devices reach this server.")],
    port: Annotated[int, typer.Option(help="The port that devices reach.")] = 9443,
    superlink_port: Annotated[int, typer.Option(help="SuperLink's port on the loopback interface.")] = 9440,
    device_port: Annotated[int, typer.Option(help="Device N's SuperNode listens on this + N, on its loopback.")] = 9500,
    bind: Annotated[str, typer.Option(help="The address that the proxy listens on.")] = "0.0.0.0",
    device: Annotated[list[str] | None, typer.Option(help="A device to write a folder for.")] = None,
    model: Annotated[str, typer.Option(help="The base model of runs, and of devices.")] = "openai/whisper-tiny.en",
    data: Annotated[str, typer.Option(help="Where devices have their recordings.")] = "data",
    make_keys: MakeKeys = False,
) -> None:
    """Write a deployment folder: the server's keys, certificates, Flower's settings, scripts, units."""
    from server.deploy.folder import init_folder

    deployment = Deployment(
        root=folder.absolute(), hosts=tuple(host), port=port, superlink_port=superlink_port,
        device_port=device_port, bind=bind, model=model, data=data,
    )  # fmt: skip
    init_folder(deployment, device or [], make_keys=make_keys)
    console.print(f"wrote {folder}")
    enroll_them = f"then: zo-asr server enroll {folder}"
    if make_keys or not device:
        console.print(f"next: {deployment.root}/start.sh, {enroll_them}{'' if device else ' NAME'}")
    else:
        console.print(f"next: {deployment.root}/start.sh, and carry {folder}/devices/NAME/ to each device")
        console.print(f"each makes its own key, as its README.md says; {enroll_them} NAME --public-key 'LINE'")


@app.command()
def units(folder: Folder) -> None:
    """Rewrite scripts, units, Flower's settings and devices' files after a change of deployment.toml or a move."""
    from server.deploy.files import write_device_files, write_server_files

    deployment = Deployment.open(folder)
    write_server_files(deployment)
    for device in deployment.devices().values():
        if not device.revoked:
            write_device_files(deployment, device)
    console.print(f"wrote start.sh, systemd/, nginx.conf, flwr-home/, app/ and devices/ of {folder}")


@app.command()
def enroll(
    folder: Folder,
    node: Annotated[str, typer.Argument(help="The device's name; without one, all that are not registered yet.")] = "",
    public_key: Annotated[str, typer.Option(help="The line that its zo-asr worker key prints, or a file.")] = "",
    make_keys: MakeKeys = False,
    as_json: AsJson = False,
) -> None:
    """Register devices at the running SuperLink, and write the folder to copy to each."""
    from server.deploy.devices import enroll as enroll_one
    from server.deploy.devices import without_key

    deployment = Deployment.open(folder)
    unknown = [device for device in deployment.devices().values() if device.waits]
    waiting = [device.name for device in unknown if device.public_key or make_keys]
    if public_key and not node:
        raise ConfigError("--public-key needs the name of the device whose key it is")
    if not node and unknown and not waiting:
        raise ConfigError(without_key(unknown[0].name))
    if not node and not waiting:
        raise ConfigError("no device waits for its registration: name a new one, or one to be looked up at SuperLink")
    done = []
    for name in [node] if node else waiting:
        device = enroll_one(deployment, name, public_key, make_key=make_keys)
        done.append({"name": name, "client_id": device.client_id, "node_id": device.node_id or None})
        if as_json:
            continue
        if not device.public_key:
            console.print(without_key(name))
            continue
        todo = f"carry {folder}/devices/{name}/ to it{', unless it has that' if public_key else ''}"
        console.print(f"{name}: client {device.client_id}, node {device.node_id}; {todo}")
    if as_json:
        print(json.dumps({"devices": done}))


@app.command()
def revoke(
    folder: Folder, node: Annotated[str, typer.Argument(help="The device's name.")], as_json: AsJson = False
) -> None:
    """Revoke a device: it can no longer connect."""
    from server.deploy.devices import revoke as revoke_one

    device = revoke_one(Deployment.open(folder), node)
    if as_json:
        print(json.dumps({"name": node, "client_id": device.client_id, "revoked": device.revoked}))
    else:
        console.print(f"{node}: revoked; its past rounds stay in the ledgers")


@app.command()
def renew(
    folder: Folder,
    ca: Annotated[bool, typer.Option("--ca", help="Make a new authority too; every device needs its file.")] = False,
) -> None:
    """Make a new server certificate for the hosts in deployment.toml."""
    from server.deploy.folder import renew as renew_all

    for step in renew_all(Deployment.open(folder), authority=ca):
        console.print(f"now {step}")


@app.command()
def start(folder: Folder, run: Run, change: Changes = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Start a run and show its messages and rounds until it has finished; Ctrl-C leaves it going."""
    _begin(folder, run, change or [], resume=False, quiet=quiet, as_json=as_json)


@app.command()
def resume(folder: Folder, run: Run, change: Changes = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Resume a run from its ledger; show it as `start` does."""
    _begin(folder, run, change or [], resume=True, quiet=quiet, as_json=as_json)


@app.command()
def follow(folder: Folder, run: Run, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Show a run that was started earlier, as `start` does."""
    from server.deploy.runs import run_id_of

    deployment = Deployment.open(folder)
    run_id = run_id_of(deployment, run)
    with _progress(deployment, run, _RECENT, quiet=quiet, as_json=as_json):
        ended = _ended(deployment, folder, run, run_id)
    _report_end(deployment, run, *ended, quiet=quiet, as_json=as_json)


@app.command()
def stop(folder: Folder, run: Run, as_json: AsJson = False) -> None:
    """Stop a run; `resume` continues it."""
    from server.deploy.runs import stop as stop_run

    stop_run(Deployment.open(folder), run)
    resume_it = f"zo-asr server resume {folder} {run}"
    if as_json:
        print(json.dumps({"run": run, "stopped": True, "resume": resume_it}))
    else:
        console.print(f"{run}: stopped; continue with: {resume_it}")


def _begin(folder: Path, run: str, changes: list[str], *, resume: bool, quiet: bool, as_json: bool) -> None:
    from server.deploy.runs import begin, run_settings
    from server.watch.progress import headline

    deployment = Deployment.open(folder)
    starting = "server and devices load the model"
    # before this start writes anything
    with _progress(deployment, run, 0, starting, quiet=quiet, as_json=as_json) as progress:
        run_id = begin(deployment, run, changes, resume=resume)
        progress.say(headline(run, run_settings(deployment, run, changes, resume=resume)))
        progress.say(f"{starting} now; the bar appears with the first round")
        ended = _ended(deployment, folder, run, run_id)
    _report_end(deployment, run, *ended, quiet=quiet, as_json=as_json)


@contextmanager
def _progress(
    deployment: Deployment, run: str, recent: int, starting: str = "", *, quiet: bool, as_json: bool
) -> Iterator[RunProgress]:
    """Show a run's messages and rounds within a block; on stderr if a JSON object goes to stdout."""
    from server.watch.follower import RunFollower
    from server.watch.progress import RunProgress

    with (
        RunProgress(progress_console(quiet=quiet, as_json=as_json), 0, starting) as progress,
        RunFollower(deployment.runs / run, progress, recent),
    ):
        yield progress


def _ended(deployment: Deployment, folder: Path, run: str, run_id: str) -> tuple[str, str, list[str]]:
    """Wait until a run has finished; return its status, details and the last lines of Flower's log.

    All of that log is in `flower.log` of the run's folder.
    """
    from server.deploy.runs import follow as follow_log

    with FlowerLog(deployment.runs / run / FLOWER_LOG) as log:
        try:
            return *follow_log(deployment, run_id, log.write), list(log.lines)
        except KeyboardInterrupt:
            print(
                f"{run} goes on; see it with zo-asr server follow {folder} {run}, end it with zo-asr server stop "
                f"{folder} {run}",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None


def _report_end(
    deployment: Deployment, run: str, status: str, details: str, lines: list[str], *, quiet: bool, as_json: bool
) -> None:
    """Say how a run has ended; exit with 1 unless it is complete."""
    output, failed = deployment.runs / run, status != "finished:completed"
    stopped = status == "finished:stopped"
    if failed and not (stopped or quiet):
        print(*lines, f"all of Flower's log: {output / FLOWER_LOG}", sep="\n", file=sys.stderr)
    if as_json:
        print(json.dumps({"run": run, "status": status, "details": details, "output": str(output)}))
        raise typer.Exit(failed)
    if failed:
        what = "stopped" if stopped else f"{status}{f' ({details})' if details else ''}"
        sentence = f"{run}: {what}; continue with: zo-asr server resume {deployment.root} {run}"
        if quiet:
            print(sentence, file=sys.stderr)
        else:
            console.print(sentence)
        raise typer.Exit(1)
    if not quiet:
        console.print(f"{run}: finished; ledger and model are in {output}")


@app.command()
def status(
    folder: Folder,
    run: Annotated[str, typer.Argument(help="A run to show rounds and devices of.", metavar="[RUN]")] = "",
    as_json: AsJson = False,
) -> None:
    """Show processes, certificates and devices and, for a run, its last rounds."""
    from server.deploy.status import collect, show

    found = collect(Deployment.open(folder), check_name(run, "run") if run else "")
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show(found, console)


@app.command()
def proxy(folder: Folder) -> None:
    """Serve only the SuperLink's /v1/fleet/ to devices, until SIGTERM."""
    from server.deploy.proxy import make_app, serve, server_config

    deployment = Deployment.open(folder)
    # the unit gives the proxy copies of the files that it needs, side by side, and no access to the others
    keys = folder if (folder / deployment.key.name).is_file() else deployment.keys
    trusted = client_context(keys / deployment.authority.name)
    served = make_app(f"https://{deployment.superlink_address}", trusted)
    serve(
        server_config(
            served,
            bind=deployment.bind,
            port=deployment.port,
            certificate=keys / deployment.certificate.name,
            key=keys / deployment.key.name,
        )
    )


Place = Annotated[Path, typer.Argument(help="The deployment folder, or the folder of one run.", metavar="DIR")]
TokenFile = Annotated[Path | None, typer.Option(help="A file with the token that callers must send.")]
Certificate = Annotated[Path | None, typer.Option(help="A certificate for TLS.")]
Key = Annotated[Path | None, typer.Option(help="Its private key.")]


@app.command()
def dashboard(
    folder: Place,
    run: Annotated[str, typer.Argument(help="A run of a deployment; default: the last one.", metavar="[RUN]")] = "",
    listen: Annotated[str, typer.Option(help="HOST:PORT; other hosts than loopback need a token.")] = "127.0.0.1:8645",
    token_file: TokenFile = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Serve a live page of a run, in progress or finished, until SIGTERM; nothing can be changed there."""
    from server.deploy.watching import resume_command, run_folder
    from server.watch.dashboard import dashboard as page
    from server.watch.live import LiveRun
    from server.watch.serve import Listening, server_of, sockets_of

    listening = Listening.of(listen, token_file, certificate, key)
    found = run_folder(folder, run)
    live = LiveRun(found, resume_command(folder, found))
    server = server_of(page(live), listening, live.close)
    sockets = sockets_of(server.config)
    console.print(f"{found.name} on {listening.url}")
    server.run(sockets)


@app.command()
def metrics(
    folder: Place,
    listen: Annotated[str, typer.Option(help="HOST:PORT; other hosts than loopback need a token.")] = "127.0.0.1:9464",
    token_file: TokenFile = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Serve Prometheus metrics of all runs at /metrics, until SIGTERM."""
    from server.deploy.watching import folders_of
    from server.watch.serve import Listening, server_of, sockets_of

    try:
        from server.watch.exporter import exporter
        from server.watch.metrics import registry_of
    except ImportError:
        raise ConfigError("metrics need prometheus_client: pip install 'federated-zo-asr[metrics]'") from None
    listening = Listening.of(listen, token_file, certificate, key)
    server = server_of(exporter(registry_of(folders_of(folder), folder)), listening)
    sockets = sockets_of(server.config)
    console.print(f"metrics of {folder} on {listening.url}metrics")
    server.run(sockets)


main = run_typer(app)

if __name__ == "__main__":
    main()
