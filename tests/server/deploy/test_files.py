"""Scripts, units and settings of a deployment folder: well-formed, and they do what they say."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from proxy_upstream import TRICKS, Upstream, ask, running_upstream

from benchmarks.fleet.device_commands import node_config
from server.deploy.deployment import Deployment
from server.deploy.files import DEVICE_UNITS, SERVER_UNITS, write_device_files
from server.deploy.folder import init_folder
from zo_common.config.run import RunConfig

NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else "")
PROGRAMS = ("flower-superlink", "flower-superexec", "flower-supernode", "zo-asr")
# records its start and its arguments; the first of a script needs longest to end, as a worker in a step does
STAND_IN = """#!/usr/bin/env python3
import os, pathlib, signal, sys, time
mark = pathlib.Path({folder!r}) / f"{{pathlib.Path(sys.argv[0]).name}}.{{os.getpid()}}"
pause = 2 if mark.stem == "flower-superlink" or sys.argv[1] == "worker" else 0.2
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(pause), mark.unlink(), os._exit(0)))
whole = mark.with_name(f".{{mark.name}}")
whole.write_text("\\n".join(sys.argv[1:]))
whole.replace(mark)  # whoever finds it finds all of it
time.sleep(60)
"""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a stand-in for every program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "marks").mkdir()
    for name in PROGRAMS:
        (folder / name).write_text(STAND_IN.format(folder=str(tmp_path / "marks")))
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def deployment(tmp_path: Path, programs: Path) -> Deployment:
    """A folder for the stand-ins, with one device."""
    made = Deployment(
        root=tmp_path / "deployment", hosts=("zo.example.org", "192.0.2.7"), port=_free_port(), bin=programs,
        device_bin=str(programs), model="/models/a model", data="/data",
    )  # fmt: skip
    init_folder(made, ["anna"], make_keys=True)
    return made


def test_no_field_is_left_open(deployment: Deployment) -> None:
    texts = [path for path in deployment.root.rglob("*") if path.is_file() and path.suffix not in (".secret", ".key")]

    assert len(texts) > 20
    assert [path for path in texts if "{{" in path.read_text()] == []


def test_scripts_are_bash(deployment: Deployment) -> None:
    for path in (deployment.root / "start.sh", deployment.device_folder_of("anna") / "start-device.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
        assert stat.S_IMODE(path.stat().st_mode) & 0o100


@pytest.mark.parametrize("name", [*SERVER_UNITS, *DEVICE_UNITS])
def test_units_hold_their_commands(deployment: Deployment, name: str) -> None:
    folder = deployment.device_folder_of("anna") if name in DEVICE_UNITS else deployment.root / "systemd"
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(folder / name)

    program = unit["Service"]["ExecStart"].split()[0]

    assert program == str(deployment.bin / Path(program).name)
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["NoNewPrivileges"] == "yes"


def test_base_models_are_kept_where_the_server_may_write(deployment: Deployment) -> None:
    unit = (deployment.root / "systemd" / "zo-asr-superexec.service").read_text()

    assert f"Environment=HF_HOME={deployment.root}/state/huggingface\n" in unit
    assert "HF_HOME=${HF_HOME:-$root/state/huggingface}" in (deployment.root / "start.sh").read_text()


def test_scripts_and_units_run_commands_by_their_names_of_today(deployment: Deployment) -> None:
    """`zo-asr-server`, `zo-asr-worker` … end with the next release."""
    old = re.compile(r"(?:/| )zo-asr-(?:server|worker|sim|ledger|privacy|adapt)(?= )")
    written = [path for path in deployment.root.rglob("*") if path.suffix in (".sh", ".service")]

    assert len(written) >= 6 and [path.name for path in written if old.search(_commands(path))] == []


def _commands(path: Path) -> str:
    """The lines of a script or unit that run something."""
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith(("ExecStart=", "keep ")))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(deployment: Deployment) -> None:
    units = [deployment.root / "systemd" / name for name in SERVER_UNITS]
    units += [deployment.device_folder_of("anna") / name for name in DEVICE_UNITS]

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    # other units of the machine may have faults of their own
    assert [line for line in done.stderr.splitlines() if "zo-asr" in line] == []


def test_the_app_lists_every_setting(deployment: Deployment) -> None:
    app = tomllib.loads((deployment.app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]

    assert app["config"].keys() == RunConfig().to_mapping().keys()
    assert RunConfig.from_mapping(app["config"]).model == "/models/a model"
    assert app["components"] == {"serverapp": "zo_asr_app.on_server:app", "clientapp": "zo_asr_app.on_client:app"}


def test_the_app_holds_no_method(deployment: Deployment) -> None:
    code = "".join(path.read_text() for path in deployment.app.rglob("*.py"))

    assert "from client.app import app" in code
    assert "from server.deploy.app import app" in code
    assert len(code.splitlines()) < 15


def test_the_example_run_is_valid_and_waits_for_every_device(deployment: Deployment) -> None:
    settings = RunConfig.from_mapping(tomllib.loads((deployment.runs / "example.toml").read_text()))

    assert (settings.model, settings.min_clients) == ("/models/a model", 1)


def test_flowers_connection_is_the_loopback_superlink(deployment: Deployment) -> None:
    found = tomllib.loads((deployment.flower_home / "config.toml").read_text())["superlink"]

    assert found["default"] == "deployment"
    assert found["deployment"] == {"address": "127.0.0.1:9440", "root-certificates": str(deployment.authority)}


def test_a_devices_own_settings_outlive_a_rewrite(deployment: Deployment) -> None:
    folder = deployment.device_folder_of("anna")
    (folder / "device.env").write_text('ZO_ASR_MODEL="mine"\n')
    (folder / "README.md").unlink()

    write_device_files(deployment, deployment.device("anna"))

    assert (folder / "device.env").read_text() == 'ZO_ASR_MODEL="mine"\n'
    page = (folder / "README.md").read_text()
    assert "zo.example.org" in page
    assert "pip install -c constraints.txt ." in page  # the versions of the tutorial


def _wait(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


class Script:
    """A script under way, and the stand-ins that it has started."""

    def __init__(self, path: Path, marks: Path) -> None:
        self.marks = marks
        self.said = marks.with_name("said")
        with self.said.open("w") as file:
            self.process = subprocess.Popen([str(path)], stderr=file, start_new_session=True)

    def pid(self, program: str) -> int:
        """The process of a program, 0 while there is none."""
        return next((int(path.suffix[1:]) for path in self.marks.glob(f"{program}.*")), 0)

    def arguments(self, program: str) -> list[str]:
        return next(iter(self.marks.glob(f"{program}.*"))).read_text().split("\n")

    def end(self, sign: signal.Signals) -> str:
        self.process.send_signal(sign)
        self.process.wait(30)
        return self.said.read_text()


@pytest.fixture
def run_script(tmp_path: Path) -> Iterator[Callable[[Path], Script]]:
    started: list[Script] = []

    def run(path: Path) -> Script:
        started.append(Script(path, tmp_path / "marks"))
        return started[-1]

    yield run
    for script in started:
        if script.process.poll() is None:
            script.process.kill()
        for mark in script.marks.iterdir():
            try:
                os.kill(int(mark.suffix[1:]), signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_start_ends_all_it_started_before_it_ends(
    deployment: Deployment, run_script: Callable[[Path], Script], sign: signal.Signals
) -> None:
    script = run_script(deployment.root / "start.sh")
    _wait(lambda: all(map(script.pid, ("flower-superlink", "flower-superexec", "zo-asr"))))
    assert script.arguments("flower-superlink") == deployment.superlink_command()[1:]
    assert script.arguments("flower-superexec") == deployment.superexec_command()[1:]
    assert script.arguments("zo-asr") == ["server", "proxy", str(deployment.root)]

    said = script.end(sign)

    assert "stopped" in said
    assert list(script.marks.iterdir()) == []


def test_start_starts_again_what_dies(deployment: Deployment, run_script: Callable[[Path], Script]) -> None:
    script = run_script(deployment.root / "start.sh")
    _wait(lambda: script.pid("flower-superexec"))
    died = script.pid("flower-superexec")

    os.kill(died, signal.SIGKILL)
    (script.marks / f"flower-superexec.{died}").unlink()

    _wait(lambda: script.pid("flower-superexec"))
    assert "superexec ended" in script.end(signal.SIGTERM)


def test_a_devices_script_gives_worker_and_supernode_one_address(
    deployment: Deployment, run_script: Callable[[Path], Script], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = deployment.device_folder_of("anna")
    monkeypatch.setenv("ZO_ASR_BIN", str(deployment.bin))
    monkeypatch.setenv("ZO_ASR_SOCKET", "/tmp/zo-asr-test.sock")
    script = run_script(folder / "start-device.sh")
    _wait(lambda: all(map(script.pid, ("flower-supernode", "zo-asr"))))

    worker, supernode = script.arguments("zo-asr"), script.arguments("flower-supernode")

    address = "unix:/tmp/zo-asr-test.sock"
    assert worker == [
        "worker",
        "--model",
        "/models/a model",
        "--data",
        "/data",
        "--listen",
        address,
        "--state",
        f"{folder}/state",
        "--node-key",
        f"{folder}/node.key",
    ]
    assert supernode[-1] == node_config(deployment, "anna", address)
    assert f"zo.example.org:{deployment.port}" in supernode
    assert "stopped" in script.end(signal.SIGTERM)
    assert list(script.marks.iterdir()) == []


def test_a_device_that_the_server_does_not_know_is_told(
    deployment: Deployment, run_script: Callable[[Path], Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = deployment.bin / "flower-supernode"
    refused.write_text("#!/bin/sh\necho 'ERROR :     Exit Code: 305'\nexit 1\n")
    monkeypatch.setenv("ZO_ASR_SOCKET", "/run/zo-asr.sock")  # a test's own folder may have too long a path
    monkeypatch.setenv("ZO_ASR_BIN", str(deployment.bin))
    script = run_script(deployment.device_folder_of("anna") / "start-device.sh")
    _wait(lambda: script.pid("zo-asr") and "supernode ended" in script.said.read_text())

    assert "the server refused this device: its key is not enrolled yet" in script.end(signal.SIGTERM)


def test_a_device_without_its_key_is_told(deployment: Deployment) -> None:
    folder = deployment.device_folder_of("anna")
    (folder / "node.key").unlink()

    done = subprocess.run([str(folder / "start-device.sh")], capture_output=True, text=True, check=False, timeout=10)

    assert done.returncode == 1
    assert "node.key is missing" in done.stderr


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[Deployment, Upstream]]:
    """Real nginx with the folder's example, before an upstream."""
    if not NGINX:
        pytest.skip("nginx is not installed")
    root = tmp_path / "for-nginx"
    first = Deployment(root=root, hosts=("localhost",))
    init_folder(first)
    with running_upstream(first.keys) as upstream:
        placed = Deployment(root=root, hosts=("localhost",), port=_free_port(), superlink_port=upstream.server_port)
        text = (root / "nginx.conf").read_text()
        assert first.superlink_address in text
        text = text.replace("9443", str(placed.port)).replace(first.superlink_address, placed.superlink_address)
        (tmp_path / "site.conf").write_text(text)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
        (tmp_path / "main.conf").write_text(
            f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; worker_processes 1;"
            f"events {{}} http {{ access_log off; {paths} include {tmp_path}/site.conf; }}"
        )
        tmp_path.chmod(0o755)
        process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "main.conf")])
        try:
            _wait(lambda: _listens(placed.port) or process.poll() is not None, 10)
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            yield placed, upstream
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_nginx_lets_the_fleet_api_through_and_nothing_else(nginx: tuple[Deployment, Upstream]) -> None:
    deployment, upstream = nginx
    headers = b"flwr-public-key: a2V5\r\nX-Forwarded-For: 10.9.8.7\r\n"

    assert ask(deployment.keys, deployment.port, b"/v1/fleet/pull-messages", b"body", headers=headers) == (
        200,
        b"/v1/fleet/pull-messages|body",
    )
    [(_, seen, _)] = upstream.asked
    assert (seen["flwr-public-key"], seen["x-forwarded-for"]) == ("a2V5", "127.0.0.1")
    allowed = b"http://127.0.0.1/v1/fleet/x"  # nginx reads an absolute target as its path: the same request
    got = {target: ask(deployment.keys, deployment.port, target)[0] for target in TRICKS if target != allowed}
    assert {target: status for target, status in got.items() if status not in (400, 404)} == {}
    assert ask(deployment.keys, deployment.port, b"/v1/fleet/pull-messages", method=b"GET")[0] == 405
    assert len(upstream.asked) == 1


def test_nginx_tells_a_device_to_come_again(nginx: tuple[Deployment, Upstream]) -> None:
    deployment, upstream = nginx
    upstream.shutdown()
    upstream.socket.close()

    assert ask(deployment.keys, deployment.port, b"/v1/fleet/pull-messages")[0] == 502
