"""Adapters published, fetched and loaded by their id, against a stand-in of the hub (`hub_stand_in`)."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from called import Call, caller
from dialects import dialect_of
from hub_stand_in import TOKEN, HubStandIn, hub_stand_in
from huggingface_hub import close_session, constants
from small_whisper import small_whisper
from torch import nn

from zo_common import load_adapted
from zo_common.adapters import hub, hub_cli
from zo_common.adapters.description import CONFIG_NAME, FILES
from zo_common.errors import LedgerError
from zo_common.ledger.file import LEDGER_NAME, write_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.models import hub as hub_state
from zo_common.models.load import LoadedModel

REPOSITORY = "anna/west-midlands"


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return small_whisper().requires_grad_(False)


@pytest.fixture(scope="module")
def ledger(base: nn.Module) -> Ledger:
    return dialect_of(base, 1, pattern="encoder", model="openai/whisper-small-one", language="en")


@pytest.fixture
def run(ledger: Ledger, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    write_ledger(tmp_path / "run" / LEDGER_NAME, ledger)
    return tmp_path / "run"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """The stand-in as this process's hub, with a cache of its own."""
    with hub_stand_in() as found:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, found.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_state, "_last", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()
        yield found
        close_session()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command: exit status, stdout, stderr."""
    return caller("zo-asr-hub", hub_cli.main, monkeypatch, capsys)


def test_what_is_published_is_fetched_and_loaded(
    call: Call, there: HubStandIn, run: Path, base: nn.Module, ledger: Ledger, tmp_path: Path
) -> None:
    status, out, err = call("push", run, REPOSITORY, "--private", "--json")
    told = json.loads(out)
    repository = there.repositories[REPOSITORY]
    assert (status, err, repository.private) == (0, "", True)
    assert sorted(repository.files("main") or ()) == sorted(FILES)
    assert told["address"].endswith(f"/{REPOSITORY}/commit/{repository.head}")

    adapted = load_adapted(LoadedModel(copy.deepcopy(base), None), REPOSITORY)
    assert adapted.checksum == ledger.records[-1].checksum

    status, out, err = call("pull", REPOSITORY, tmp_path / "fetched")
    assert (status, err) == (0, "")
    assert f"3 rounds on openai/whisper-small-one, checksum {told['checksum']}" in out
    assert sorted(p.name for p in (tmp_path / "fetched").iterdir() if p.is_file()) == sorted(FILES)


def test_a_second_commit_goes_on_and_a_revision_is_fetched(
    call: Call, there: HubStandIn, run: Path, base: nn.Module
) -> None:
    call("push", run, REPOSITORY)
    first = there.repositories[REPOSITORY].head
    longer = dialect_of(base, 1, pattern="encoder", rounds=5, model="openai/whisper-small-one")
    write_ledger(run / LEDGER_NAME, longer)
    call("push", run, REPOSITORY)

    _, newest, _ = call("pull", REPOSITORY)
    _, older, _ = call("pull", REPOSITORY, "--revision", first)

    assert ": 5 rounds" in newest and ": 3 rounds" in older


def test_without_the_hub_what_was_fetched_is_used(
    there: HubStandIn, call: Call, run: Path, base: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("push", run, REPOSITORY)
    load_adapted(LoadedModel(copy.deepcopy(base), None), REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(there.asked)

    assert load_adapted(LoadedModel(copy.deepcopy(base), None), REPOSITORY).checksum
    assert len(there.asked) == asked


def test_what_the_hub_refuses_is_one_sentence(
    there: HubStandIn, call: Call, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, out, err = call("push", run, REPOSITORY)
    assert (status, out) == (1, "")
    assert "anna/west-midlands" in err and "hf auth login" in err and len(err.splitlines()) == 1

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    status, out, err = call("pull", "anna/nothing")
    assert (status, out) == (1, "")
    assert "anna/nothing" in err and "check the name" in err and len(err.splitlines()) == 1


def test_a_repository_without_a_ledger(there: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("nothing here\n")
    hub.push(tmp_path / "folder", REPOSITORY)

    with pytest.raises(LedgerError, match=r"holds no ledger\.zo"):
        hub.fetch_ledger(REPOSITORY)
    with pytest.raises(LedgerError, match=r"'nobody/nothing' is neither here nor can be used on the hub"):
        hub.fetch_ledger("nobody/nothing")


def test_a_description_of_another_ledger_is_refused(there: HubStandIn, call: Call, run: Path, tmp_path: Path) -> None:
    call("push", run, REPOSITORY, "--dry-run", tmp_path / "made")
    made = tmp_path / "made" / CONFIG_NAME
    made.write_text(json.dumps(json.loads(made.read_text()) | {"checksum": "0" * 16}))
    hub.push(tmp_path / "made", REPOSITORY)

    status, out, err = call("pull", REPOSITORY)

    assert (status, out) == (1, "")
    assert "has checksum '0000000000000000', the ledger beside it" in err


@pytest.mark.slow
def test_by_its_environment_in_a_process_of_its_own(run: Path, tmp_path: Path) -> None:
    with hub_stand_in() as there:
        environment = os.environ | {
            "HF_ENDPOINT": there.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        for words in (["push", str(run), REPOSITORY], ["pull", REPOSITORY]):
            done = subprocess.run(
                [sys.executable, "-c", "from zo_common.command import main; main()", "hub", *words],
                capture_output=True, text=True, check=False, timeout=200, env=environment,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "3 rounds" in done.stdout
