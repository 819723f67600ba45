"""`zo-asr` as a program: groups that are imported when asked for, completion, and the names of earlier releases."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

from zo_common.command import GROUPS

_MAIN = "import sys; sys.argv[0] = 'zo-asr'; from zo_common.command import main; main()"


def _run(*arguments: str, code: str = _MAIN, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_all_groups_are_listed_and_none_is_imported() -> None:
    watched = (
        "import atexit, sys; atexit.register(lambda: print(sorted({'torch', 'flwr', 'ray'} & set(sys.modules)))); "
    )
    found = _run("--help", code=watched + _MAIN)
    assert found.returncode == 0
    assert all(name in found.stdout for name in GROUPS)
    assert found.stdout.rstrip().endswith("[]")


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_its_own_help(group: str) -> None:
    found = _run(group, "--help")
    assert found.returncode == 0, found.stderr
    assert f"zo-asr {group}" in found.stdout


def test_the_version_is_that_of_the_package() -> None:
    found = _run("--version")
    assert (found.returncode, found.stdout) == (0, f"zo-asr {importlib.metadata.version('federated-zo-asr')}\n")


def test_an_unknown_group_is_one_sentence() -> None:
    found = _run("ledgr")
    assert found.returncode == 2
    assert "No such command 'ledgr'" in found.stderr


def test_a_user_error_is_one_sentence_and_status_1() -> None:
    found = _run("ledger", "show", "/nonexistent/ledger.zo")
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(("words", "expected"), [("zo-asr led", "ledger"), ("zo-asr ledger ver", "verify")])
def test_tab_completes_groups_and_their_commands(words: str, expected: str) -> None:
    count = str(len(words.split()) - 1)
    found = _run(_ZO_ASR_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert expected in found.stdout.split()


@pytest.mark.parametrize("group", ["ledger", "sim"])
def test_an_old_name_is_the_same_command(group: str) -> None:
    old = f"import sys; sys.argv[0] = 'zo-asr-{group}'; from zo_common.command import {group}; {group}()"
    found = _run("--help", code=old)
    assert found.returncode == 0
    assert found.stderr == ""  # what it has become is told to people, not to programs
    assert f"zo-asr-{group}" in found.stdout
