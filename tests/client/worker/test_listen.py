"""Who may talk to a worker: its owner on a Unix socket, or whoever on this machine knows the token."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from client.worker import listen
from client.worker.client import WorkerClient, WorkerError, read_token
from client.worker.listen import TokenCheck, bind, notify
from client.worker.worker_pb2 import CancelReply
from client.worker.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from zo_common.errors import ConfigError

TOKEN = "0123456789abcdef"


class _Service(WorkerServicer):
    def Cancel(self, request: object, context: object) -> CancelReply:
        return CancelReply(word="heard")


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """A server at an address, which is returned as it really is."""
    servers = []

    def start(address: str, token: str = "") -> str:
        server = grpc.server(
            ThreadPoolExecutor(2), interceptors=[TokenCheck(token)] if token else [], options=listen.SERVER_OPTIONS
        )
        add_WorkerServicer_to_server(_Service(), server)
        found = bind(server, address, token)
        server.start()
        servers.append(server)
        return found

    yield start
    for server in servers:
        server.stop(0).wait(5)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, as Unix sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="zo"))
    yield folder
    shutil.rmtree(folder)


def test_the_socket_is_the_owners_alone_from_the_first_instant(short: Path) -> None:
    masks = []

    class Watched:
        def __init__(self) -> None:
            self.server = grpc.server(ThreadPoolExecutor(1), options=listen.SERVER_OPTIONS)

        def add_insecure_port(self, address: str) -> int:
            mask = os.umask(0o077)
            os.umask(mask)
            masks.append(mask)
            return self.server.add_insecure_port(address)

    watched = Watched()
    before = os.umask(0o022)
    try:
        bind(watched, f"unix:{short}/new/worker.sock", "")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)

    assert masks == [0o177]
    assert stat.S_IMODE((short / "new" / "worker.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((short / "new").stat().st_mode) == 0o700
    watched.server.stop(0).wait(5)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try it as another user")
def test_another_user_is_refused(serve: Callable[..., str], short: Path) -> None:
    short.chmod(0o755)
    serve(f"unix:{short}/worker.sock")
    code = f"import socket; socket.socket(socket.AF_UNIX).connect('{short}/worker.sock')"

    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    run = subprocess.run([python, "-c", code], user="nobody", capture_output=True, text=True, timeout=30, check=False)

    assert "PermissionError" in run.stderr


def test_a_socket_of_a_dead_worker_is_replaced(serve: Callable[..., str], short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{short}/worker.sock")

    with WorkerClient(serve(f"unix:{short}/worker.sock")) as client:
        assert client.cancel() == "heard"


def test_a_live_one_is_left_alone(serve: Callable[..., str], short: Path) -> None:
    address = serve(f"unix:{short}/worker.sock")

    with pytest.raises(ConfigError, match=r"a worker listens on .* already: stop it"):
        serve(address)
    with WorkerClient(address) as client:
        assert client.cancel() == "heard"


def test_a_file_that_is_no_socket_is_not_removed(serve: Callable[..., str], short: Path) -> None:
    (short / "worker.sock").write_text("precious")

    with pytest.raises(ConfigError, match="is there and no socket"):
        serve(f"unix:{short}/worker.sock")
    assert (short / "worker.sock").read_text() == "precious"


@pytest.mark.parametrize("address", ["unix:relative.sock", "unix:", "unix:/" + "x" * 107])
def test_a_socket_path_that_cannot_be_is_one_sentence(serve: Callable[..., str], address: str) -> None:
    with pytest.raises(ConfigError, match="expected unix: and an absolute path of at most 107 bytes"):
        serve(address)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:7777", "[::]:7777", "10.0.0.1:7777", "example.org:80", "7777", ":7777", "127.0.0.1", "127.0.0.1:x"],
)
def test_what_is_not_loopback_is_refused_even_with_a_token(serve: Callable[..., str], address: str) -> None:
    with pytest.raises(ConfigError, match="a loopback address and port"):
        serve(address, TOKEN)


def test_a_port_without_a_token_is_refused(serve: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="without a token: give --token-file"):
        serve("127.0.0.1:0")


@pytest.mark.parametrize("token", ["", "0123456789abcdeX", TOKEN + "0", TOKEN[:-1]])
def test_a_wrong_token_is_refused(serve: Callable[..., str], token: str) -> None:
    address = serve("127.0.0.1:0", TOKEN)
    with WorkerClient(address, TOKEN) as client:
        assert client.cancel() == "heard"
    with WorkerClient(address, token) as client, pytest.raises(WorkerError, match="refused the token"):
        client.cancel()


def test_a_port_that_is_taken_is_refused(serve: Callable[..., str]) -> None:
    address = serve("127.0.0.1:0", TOKEN)

    with pytest.raises(ConfigError, match="cannot be listened on"):
        serve(address, TOKEN)


def test_token_files(tmp_path: Path) -> None:
    (tmp_path / "good").write_text(TOKEN + "\n")
    (tmp_path / "short").write_text("1234\n")
    (tmp_path / "bytes").write_bytes(b"\xff" * 20)
    for name in ("good", "short", "bytes"):
        (tmp_path / name).chmod(0o600)

    assert read_token(tmp_path / "good") == TOKEN
    for name, word in (("short", "holds 4 characters"), ("bytes", "not ASCII"), ("missing", "No such file")):
        with pytest.raises(ConfigError, match=word):
            read_token(tmp_path / name)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(mode)

    with pytest.raises(ConfigError, match=rf"has mode {mode:04o}, expected 0600: run chmod 600 on it$"):
        read_token(tmp_path / "token")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_where_it_asks(short: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    notify("READY=1")  # nobody asks
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"{short}/notify"
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
