"""What all command lines share, in processes of their own: signals, and ~ in arguments."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from zo_common.cli import run_typer

PROGRAM = """
import sys, time
from pathlib import Path
import typer
from zo_common.cli import run_typer

app = typer.Typer()

@app.command()
def work(folder: Path, output: Path = Path(), setting: str = "", words: str = "") -> None:
    try:
        print(folder, output, setting, words, flush=True)
        if words == "wait":
            time.sleep(30)
    finally:
        print("put away", flush=True)

run_typer(app)()
"""


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": "/home/of-somebody"},
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_order(number: int, status: int) -> None:
    process = _start("x", "--words", "wait")
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    assert process.returncode == status
    assert out == "put away\n"
    assert err == ""


def test_the_home_folder_in_arguments() -> None:
    """A shell expands the first alone."""
    arguments = ("~/data", "--output=~/out", "--setting", "output=~/x", "--words", "half ~ of it, a~b")
    out, _ = _start(*arguments).communicate(timeout=20)

    home = "/home/of-somebody"
    assert out.splitlines()[0] == f"{home}/data {home}/out output={home}/x half ~ of it, a~b"


def test_a_folder_that_is_called_tilde_can_be_named() -> None:
    out, _ = _start("./~", "--output", "./~/out").communicate(timeout=20)

    assert out.splitlines()[0] == f"~ {Path('~/out')}  "


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a.wav"), "/a.wav: No space left on device: free space on "),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device: free space on its disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), "/a: Disk quota exceeded: free space on its disk"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "No such file or directory: check the pa"),
    ],
)
def test_an_error_of_the_system_has_its_own_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, said: str
) -> None:
    app = typer.Typer()

    @app.command()
    def work() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["work"])

    with pytest.raises(SystemExit) as ended:
        run_typer(app)()

    assert ended.value.code == 1
    assert said in capsys.readouterr().err
