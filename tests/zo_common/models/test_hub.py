"""Hub ids without a network: one sentence within seconds, in processes of their own without a hub to reach."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

ASK = {
    "model": ("zo_common.models.load", "load_model('nobody/whisper-of-nobody')"),
    "data": ("zo_common.speech.manifest", "read_manifest('nobody/speech', split='train')"),
}
PROGRAM = """
import time
import datasets, transformers
from zo_common.errors import ZOError
from {module} import *
started = time.monotonic()
try:
    {call}
except ZOError as error:
    print(time.monotonic() - started, error)
"""
SECONDS = 15.0  # the clients' own patience is 27 and 70 s


@pytest.fixture(params=["refuses", "is silent"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "refuses":
            server.close()
        yield address


@pytest.mark.parametrize("kind", ASK)
def test_a_hub_that_cannot_be_reached(endpoint: str, kind: str) -> None:
    module, call = ASK[kind]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module, call=call)],
        env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    seconds, _, said = done.stdout.partition(" ")
    assert float(seconds) < SECONDS
    assert "nobody/" in said and "hub" in said and "download it" in said


def test_only_what_may_be_a_hub_id_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from zo_common.models import hub

    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for source, offline in (("openai/whisper-tiny", True), ("/nowhere/model", False), ("~/model", False), (".", False)):
        with hub.hub_or_cache(source):
            assert constants.HF_HUB_OFFLINE is offline
        assert constants.HF_HUB_OFFLINE is False


def test_what_is_said_offline_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from zo_common.models import hub

    monkeypatch.setattr(hub, "_ask", lambda endpoint: pytest.fail("the hub was asked"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert hub.hub_answers() is False
