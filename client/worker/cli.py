"""`zo-asr worker`: the resident worker of a device; `status` and `cancel` call a running one."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from client.worker.client import WorkerClient, read_token
from client.worker.listen import expect_local, notify, socket_path
from client.worker.view import Follower, show
from zo_common.cli import AsJson, Threads, run_typer
from zo_common.console import LineHandler, printable, shown
from zo_common.errors import ConfigError

logger = logging.getLogger(__name__)
DEFAULT_LISTEN = "unix:/run/zo-asr/worker.sock"
app = typer.Typer(
    help="Keep model, recordings and rounds of this device warm between Flower's messages.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Listen = Annotated[str, typer.Option(help="unix:/path, or a loopback address and port.", envvar="ZO_ASR_LISTEN")]
TokenFile = Annotated[Path | None, typer.Option(help="A file with the secret that callers on a port must send.")]


@dataclass(frozen=True)
class Options:
    """Options of a worker."""

    listen: str
    token: str
    state: Path
    own: dict[str, Any]
    orphan_seconds: float
    stop_seconds: float
    max_epsilon: float = 0.0
    max_delta: float = 1e-6
    demands: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, Any] = field(default_factory=dict)
    metrics: str = ""


@app.callback(invoke_without_command=True)
def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="Base model: a directory or a hub id.")] = "",
    data: Annotated[str, typer.Option(help="This device's recordings: a folder with metadata.csv.")] = "",
    listen: Listen = DEFAULT_LISTEN,
    state: Annotated[Path | None, typer.Option(help="Folder of the state kept over restarts.")] = None,
    token_file: TokenFile = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps or xpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16, of forward passes.")] = "auto",
    frozen_precision: Annotated[
        str, typer.Option(help="auto, float32, bfloat16, float16 or int8, of frozen weights; default: the run's.")
    ] = "",
    torch_threads: Threads = 0,
    train_split: Annotated[str, typer.Option(help="Split of the recordings; default: the run's.")] = "",
    text_column: Annotated[str, typer.Option(help="Column of the transcripts; default: the run's.")] = "",
    loss_check: Annotated[bool | None, typer.Option(help="Compare the loss once with the full window's.")] = None,
    orphan_seconds: Annotated[float, typer.Option(min=0, help="Seconds that work continues without a caller.")] = 15.0,
    stop_seconds: Annotated[float, typer.Option(min=0, help="Seconds that a stop waits for the present step.")] = 60.0,
    max_epsilon: Annotated[float, typer.Option(min=0, help="Maximum ε of all runs together; 0 sets no limit.")] = 0.0,
    max_delta: Annotated[float, typer.Option(help="The δ of max-epsilon.")] = 1e-6,
    least_privacy: Annotated[str, typer.Option(help="none, example or device: less is not answered.")] = "none",
    least_noise: Annotated[float, typer.Option(min=0, help="Least noise multiplier of a plan.")] = 0.0,
    secure_only: Annotated[bool, typer.Option("--secure-only", help="Answer in secure sums alone.")] = False,
    least_weights: Annotated[int, typer.Option(min=0, help="Least number of trained weights.")] = 0,
    node_key: Annotated[Path | None, typer.Option(help="Private key that signs this device's secure sums.")] = None,
    peer_keys: Annotated[
        Path | None, typer.Option(help="Public keys of all devices; default: peers.keys beside the node key.")
    ] = None,
    secure_cohort: Annotated[int, typer.Option(min=3, help="Least number of devices that a secure sum may be of.")] = 3,
    metrics: Annotated[str, typer.Option(help="Serve Prometheus metrics there, such as 127.0.0.1:9465.")] = "",
) -> None:
    """Run the worker until SIGTERM or Ctrl-C; both save the state and exit with status 0."""
    if ctx.invoked_subcommand is not None:
        return
    if not model or not data:
        raise ConfigError("model or data is missing: give --model and --data, or a command such as status")
    own = {"model": model, "data": data, "device": device, "precision": precision, "torch-threads": torch_threads}
    if loss_check is not None:
        own["loss-check"] = loss_check
    words = {"train-split": train_split, "text-column": text_column, "frozen-precision": frozen_precision}
    own |= {key: message for key, message in words.items() if message}
    token = read_token(token_file) if token_file else ""
    demands = {"least-privacy": least_privacy, "least-noise": least_noise, "secure-only": secure_only}
    demands |= {"least-weights": least_weights, "max-epsilon": max_epsilon}
    sums = {"node-key": node_key, "peer-keys": peer_keys, "secure-cohort": secure_cohort}
    folder = state or default_state_folder()
    given = listen, token, folder, own, orphan_seconds, stop_seconds, max_epsilon, max_delta, demands, sums, metrics
    run_worker(Options(*given))


def default_state_folder() -> Path:
    """Return systemd's `$STATE_DIRECTORY`, else a folder in the user's home."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else Path.home() / ".local" / "state" / "zo-asr"


def stderr_handler() -> logging.Handler:
    """Return a handler that writes messages with the time to stderr and ignores a failed write, as on a full disk."""

    def write(line: str) -> None:
        with suppress(OSError):
            os.write(2, f"{printable(line)}\n".encode(errors="replace"))  # unbuffered: nothing is left to fail at exit

    handler = LineHandler(write)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    return handler


def run_worker(options: Options) -> None:
    """Load the model, recover the state and listen; return after a signal once the state is on disk."""
    with shown(stderr_handler()):
        _run_worker(options)


def _run_worker(options: Options) -> None:
    stop = threading.Event()
    expect_local(options.listen, options.token)  # before the model is loaded
    serve = _metrics_server() if options.metrics else None
    from client.device.demands import Demands
    from client.device.privacy_account import ACCOUNT_NAME, PrivacyAccount
    from client.device.sum_keys import sum_keys
    from client.worker.job_queue import JobQueue
    from client.worker.journal import Journal
    from client.worker.runtime import WorkerRuntime
    from client.worker.service import start_server

    demands, keys = Demands.of(options.demands), partial(sum_keys, options.sums)
    keys()  # a file that cannot be used ends the start
    journal = Journal(options.state)
    queue = JobQueue(options.orphan_seconds)
    account = None
    if options.max_epsilon:
        account = PrivacyAccount(options.state / ACCOUNT_NAME, options.max_epsilon, options.max_delta)
        logger.info(f"privacy: ε {account.epsilon:.3f} of {options.max_epsilon:g} spent at δ {options.max_delta:g}")
    runtime = WorkerRuntime(options.own, journal, queue, account, demands, keys)
    runtime.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server, service, address = start_server(runtime, queue, options.listen, options.token)
    logger.info(f"listening on {address}, state in {options.state}")
    if serve is not None:
        spending = (account, options.state / ACCOUNT_NAME) if account is not None else None
        serve(options.metrics, lambda: service.status(refresh=False), spending)
        logger.info(f"metrics on http://{options.metrics}/metrics")
    notify("READY=1")
    stop.wait()
    notify("STOPPING=1")
    logger.info("stopping")
    ended = queue.close(options.stop_seconds)
    server.stop(grace=1.0).wait(3.0)
    path = socket_path(options.listen)
    if path is not None:
        path.unlink(missing_ok=True)
    if not ended:
        logger.warning(
            f"the step in progress takes longer than {options.stop_seconds:g} s: round {runtime.have_round} is saved"
        )
        os._exit(0)  # its thread cannot be ended otherwise
    runtime.save()
    journal.close()
    logger.info(f"stopped at round {runtime.have_round}")


def _metrics_server() -> Callable[..., Any]:
    try:
        from client.worker.metrics import serve_metrics
    except ImportError:
        raise ConfigError("--metrics needs prometheus_client: pip install 'federated-zo-asr[metrics]'") from None
    return serve_metrics


def _ask(listen: str, token_file: Path | None, question: Callable[[WorkerClient], Any]) -> Any:
    token = read_token(token_file) if token_file else ""
    with WorkerClient(listen, token, timeout=10.0) as worker:
        return question(worker)


@app.command()
def status(
    listen: Listen = DEFAULT_LISTEN,
    token_file: TokenFile = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the worker's model, data, state and work in progress."""

    def read_status(worker: WorkerClient) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(worker.info().status)
        return found

    if follow:
        with Follower() as follower:
            _ask(listen, token_file, lambda worker: follower.run(lambda: read_status(worker)))
        return
    found = _ask(listen, token_file, read_status)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


@app.command()
def cancel(listen: Listen = DEFAULT_LISTEN, token_file: TokenFile = None, as_json: AsJson = False) -> None:
    """Stop the work in progress after its step; the server gets an error."""
    message = _ask(listen, token_file, lambda worker: worker.cancel())
    if as_json:
        print(json.dumps({"stopping": message or None}))
    else:
        print(f"stopping the {message}" if message else "nothing to stop")


@app.command()
def key(
    folder: Annotated[Path, typer.Argument(help="The device's folder, with ca.crt and device.env.")] = Path(),
) -> None:
    """Make this device's private key, if it has none, and print the public line that the server enrolls."""
    from zo_common.device_key import KEY_NAME, make_key

    print(make_key(folder))
    print(f"{folder / KEY_NAME} stays on this device; the server's operator enrolls the line above", file=sys.stderr)


main = run_typer(app)

if __name__ == "__main__":
    main()
