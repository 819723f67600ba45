"""A whole deployment of real processes on this machine: SuperLink, SuperExec, proxy, devices with fault injection."""

from __future__ import annotations

import csv
import json
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from benchmarks.fleet.children import Children, wait_until
from benchmarks.fleet.device_commands import supernode_command, worker_command
from benchmarks.fleet.forwarder import Wire
from client.worker.client import WorkerClient, WorkerError
from server.deploy.deployment import CONNECTION, Deployment
from server.deploy.flower import FlowerError, flwr_json
from server.run.log import read_rows
from zo_common.ledger.file import read_ledger
from zo_common.ledger.ledger import Ledger

START_SECONDS = 90.0
ROUND_SECONDS = 90.0
COMMAND_SECONDS = 90.0
SPEAKERS = ("anna", "ben", "cleo")
QUICK = {
    "trained-tensors": "encoder-early",  # of so many weights that a ledger is smaller than a snapshot
    "num-queries": 2,
    "batch-size": 2,
    "local-steps": 2,
    "learning-rate": 0.05,
    "epsilon": 1e-3,
    "loss-check": False,  # tones and random weights have little but noise
    "num-server-rounds": 3,
    "round-timeout": 30.0,
    "torch-threads": 1,
}


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports of the loopback interface that are free now."""
    draw = random.SystemRandom()
    for _ in range(200):
        first = draw.randrange(20000, 32000 - count)  # below those that the system gives to outgoing connections
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise RuntimeError(f"no {count} consecutive ports are free")


def write_own_recordings(corpus: Path, target: Path, speaker: str) -> Path:
    """Write the rows of one train speaker and the whole test split: what one device holds."""
    for split in ("train", "test"):
        folder = target / split
        folder.mkdir(parents=True)
        with (corpus / split / "metadata.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        chosen = [row for row in rows if split == "test" or row[2] == speaker]
        for row in chosen:
            shutil.copyfile(corpus / split / row[0], folder / row[0])
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([head, *chosen])
    return target


@dataclass
class Run:
    """One run of a fleet, started or resumed."""

    name: str
    output: Path
    settings: dict[str, Any]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def ledger(self) -> Ledger:
        """The ledger on disk, which must be whole."""
        return read_ledger(self.output / "ledger.zo", tolerate_torn=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`rounds.jsonl` so far."""
        path = self.output / "rounds.jsonl"
        return read_rows(path) if path.exists() else []

    @property
    def said(self) -> str:
        """Output of the command."""
        return self.log.read_text(errors="replace")

    @property
    def devices(self) -> dict[int, dict[str, Any]]:
        """`devices.json`, by client id."""
        found = json.loads((self.output / "devices.json").read_text())
        return {int(entry["client_id"]): entry for entry in found["devices"]}

    def wait_for_round(self, server_round: int, timeout: float = ROUND_SECONDS) -> None:
        """Wait until that round is in the ledger; fail early where the command has ended."""

        def reached() -> bool:
            done = bool(self.rows) and int(self.rows[-1]["server_round"]) >= server_round
            assert done or self.process.poll() is None, f"{self.name} ended before round {server_round}:\n{self.said}"
            return done

        wait_until(f"round {server_round} of {self.name}", reached, timeout)

    def finish(self, timeout: float = 180.0) -> int:
        """Wait for the command; its exit status."""
        return self.process.wait(timeout)


@dataclass
class Fleet:
    """Makes a deployment folder and runs all of it until the block ends.

    Processes are named superlink, superexec, proxy, and worker-NAME, supernode-NAME for each device. They are begun
    again when they end, as systemd does. A SuperNode reaches the proxy through `wires[NAME]`.

    Attributes:
        names: devices that are started with the server; `late` ones are only enrolled.
        host: the address of the proxy, which must be one of this machine.
        before: words put before the commands of a device, by its name: they run it in a place of its own.
    """

    folder: Path
    model: Path
    corpus: Path
    names: tuple[str, ...] = SPEAKERS
    late: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    before: dict[str, list[str]] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # a socket's path must be short
        self.short = Path(tempfile.mkdtemp(prefix="fleet-"))
        first = free_ports(2 + len(self.names) + len(self.late))
        self.deployment = Deployment(
            root=self.short / "deployment",
            hosts=(self.host,),
            port=first,
            superlink_port=first + 1,
            device_port=first + 2,
            bind=self.host,
            model=str(self.model),
            data=str(self.corpus),
        )
        self.children = Children(self.folder / "logs")

    def __enter__(self) -> Fleet:
        try:
            with self.telling():
                self._init()
                self.start_server()
                self._must("enroll", str(self.deployment.root))
                for name in self.names:
                    self.start_device(name)
                self.wait_for_devices(self.names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and remove sockets, keys and runs."""
        try:
            self.children.close()
        finally:
            for wire in self.wires.values():
                wire.close()
            shutil.rmtree(self.short, ignore_errors=True)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Print the ends of all logs if the block fails."""
        try:
            yield
        except BaseException:
            print(self.children.tails())
            raise

    @property
    def environment(self) -> dict[str, str]:
        """Environment of all processes: one thread each, and nothing from the network."""
        return self.deployment.environment() | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }

    # the server

    def _init(self) -> None:
        there = self.deployment
        chosen = {"host": self.host, "port": there.port, "superlink-port": there.superlink_port}
        chosen |= {"device-port": there.device_port, "bind": there.bind, "model": there.model, "data": there.data}
        devices = [("device", name) for name in self.names + self.late]
        options = [part for key, value in [*chosen.items(), *devices] for part in (f"--{key}", str(value))]
        self.short.chmod(0o755)  # as /run is: what keeps others out is the mode of the socket and of the folder
        self._must("init", str(there.root), *options, "--make-keys", cwd=self.short)

    def _must(self, *arguments: str, cwd: Path | None = None) -> None:
        done = self.cli(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr

    def start_server(self) -> None:
        """Start SuperLink, SuperExec and proxy."""
        start = partial(self.children.start, env=self.environment, pause=1.0)
        start("superlink", self.deployment.superlink_command())
        self.wait_for_superlink()
        start("superexec", self.deployment.superexec_command())
        start("proxy", self.deployment.proxy_command())
        wait_until("the proxy answers", lambda: self.answers(self.deployment.port, self.host), START_SECONDS)

    def wait_for_superlink(self) -> None:
        """Wait until it takes connections."""
        port = self.deployment.superlink_port
        wait_until("SuperLink answers", lambda: self.answers(port), START_SECONDS)

    def answers(self, port: int, host: str = "127.0.0.1") -> bool:
        """Return whether somebody with this deployment's certificate is at a port."""
        context = ssl.create_default_context(cafile=str(self.deployment.authority))
        try:
            plain = socket.create_connection((host, port), timeout=3)
            with plain, context.wrap_socket(plain, server_hostname=host):
                return True
        except OSError:
            return False

    def online(self) -> set[str]:
        """Return names of the devices that SuperLink considers connected."""
        try:
            listed = flwr_json(self.deployment, "supernode", "list", CONNECTION)["nodes"]
        except FlowerError:
            return set()
        ids = {device.node_id: name for name, device in self.deployment.devices().items()}
        return {ids.get(str(n["node-id"]), "") for n in listed if str(n["status"]) == "online"}

    def wait_for_devices(self, names: tuple[str, ...], timeout: float = START_SECONDS) -> None:
        """Wait until their workers answer and their SuperNodes are connected."""
        for name in names:
            wait_until(f"worker of {name}", partial(self.is_awake, name), timeout)
        wait_until(f"{', '.join(names)} online", lambda: set(names) <= self.online(), timeout, every=1.0)

    def server_app(self) -> int:
        """Return process id of the server's part of the run that is going on."""
        found = self.children.of_marker("flwr-serverapp")
        assert len(found) == 1, f"{len(found)} processes run a ServerApp, expected one"
        return found[0]

    # devices

    def socket_of(self, name: str) -> str:
        """Return the address of a device's worker."""
        return f"unix:{self.short}/{name}.sock"

    def client_id(self, name: str) -> int:
        """Return the number of a device."""
        return self.deployment.device(name).client_id

    def recordings_of(self, name: str) -> Path:
        """Return the folder of one device's recordings: the train speaker of its name, or one of the three."""
        data = self.folder / "recordings" / name
        if not data.exists():
            speaker = name if name in SPEAKERS else SPEAKERS[self.client_id(name) % 3]
            write_own_recordings(self.corpus, data, speaker)
        return data

    def start_device(self, name: str) -> None:
        """Start its worker, and its SuperNode behind a forwarder of its own."""
        self.start_worker(name)
        self.start_supernode(name)

    def start_worker(self, name: str, model: Path | None = None, stand_in: Sequence[str] = ()) -> None:
        """Start the worker with its recordings, or the command of a stand-in with the same arguments."""
        command = worker_command(
            self.deployment,
            name,
            socket=self.socket_of(name),
            state=self.folder / "state" / name,
            model=model or self.model,
            data=self.recordings_of(name),
        )
        if stand_in:
            command[:2] = stand_in  # instead of `zo-asr worker`
        command = [*self.before.get(name, []), *command, "--torch-threads", "1"]
        self.children.start(f"worker-{name}", command, self.environment, pause=1.0)

    def start_supernode(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start its SuperNode, again every 5 s, as it is refused until it was seen offline.

        Args:
            environment: variables that only this device's SuperNode has.
        """
        if name not in self.wires:
            self.wires[name] = Wire((self.host, self.deployment.port), self.host)
        command = supernode_command(
            self.deployment, name, socket=self.socket_of(name), superlink=self.wires[name].address
        )
        command = [*self.before.get(name, []), *command]
        self.children.start(f"supernode-{name}", command, self.environment | dict(environment or {}), pause=5.0)

    def worker(self, name: str, timeout: float = 60.0) -> WorkerClient:
        """Return a connection to a device's worker."""
        return WorkerClient(self.socket_of(name), wait=0.5, timeout=timeout)

    def info(self, name: str) -> dict[str, Any]:
        """Return what `zo-asr-worker status --json` shows."""
        with self.worker(name) as client:
            found: dict[str, Any] = json.loads(client.info().status)
            return found

    def is_awake(self, name: str) -> bool:
        """Return whether a device's worker answers."""
        try:
            return bool(self.info(name))
        except WorkerError:
            return False

    # runs

    def start(self, run: str, **settings: Any) -> Run:
        """Run `zo-asr-server start` with the quick settings and these (snake_case) changes."""
        chosen = QUICK | {"min-clients": len(self.names)}
        chosen |= {key.replace("_", "-"): value for key, value in settings.items()}
        (self.deployment.runs / f"{run}.toml").write_text(tomli_w.dumps(chosen))
        return self._begin(run, "start", chosen)

    def resume(self, run: Run) -> Run:
        """Run `zo-asr-server resume`."""
        return self._begin(run.name, "resume", run.settings)

    def _begin(self, run: str, verb: str, settings: dict[str, Any]) -> Run:
        name = f"{verb}-{run}-{time.monotonic_ns()}"
        command = [f"{self.deployment.bin}/zo-asr-server", verb, str(self.deployment.root), run]
        child = self.children.start(name, command, self.environment)
        return Run(run, self.deployment.runs / run, settings, child.log, child.process)

    def cli(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `zo-asr-server …` to its end."""
        return self.command(["zo-asr-server", *arguments], cwd=cwd)

    def command(self, command: list[str], cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run an installed command of the operator to its end, in the deployment's environment."""
        return subprocess.run(
            [f"{self.deployment.bin}/{command[0]}", *command[1:]], env=self.environment | env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS,
            cwd=cwd or self.deployment.root,
        )  # fmt: skip

    def attempt(self, name: str, command: list[str], timeout: float = 40.0) -> tuple[int, str]:
        """Run a process that should end: return its exit status and its output."""
        child = self.children.start(name, command, self.environment)
        return child.process.wait(timeout), child.log.read_text(errors="replace")
