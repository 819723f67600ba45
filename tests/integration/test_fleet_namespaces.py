"""Three devices in network namespaces of their own, each with its own address and without the server's loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import NotPermitted, bridged

from benchmarks.fleet.agreement import check_agreement, contributors
from benchmarks.fleet.processes import SPEAKERS, Fleet

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def network() -> Iterator[tuple[str, dict[str, str]]]:
    """The server's address and the devices' namespaces."""
    try:
        with bridged(SPEAKERS) as made:
            yield made
    except NotPermitted as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


def test_three_addresses_train_together(
    network: tuple[str, dict[str, str]], tiny_whisper: Path, mini_corpus: Path, tmp_path: Path
) -> None:
    host, spaces = network
    before = {name: ["ip", "netns", "exec", space] for name, space in spaces.items()}
    with Fleet(tmp_path, tiny_whisper, mini_corpus, host=host, before=before) as fleet, fleet.telling():
        run = fleet.start("apart", num_server_rounds=2, run_seed=31)
        assert run.finish(180) == 0, run.said

        ledger = check_agreement(fleet, run, SPEAKERS)

        assert contributors(ledger) == [[0, 1, 2]] * 2
        callers = {address for wire in fleet.wires.values() for address in wire.callers}
        assert len(callers) == 3
        assert host not in callers
        for name, words in before.items():
            assert _reaches(words, f"{host}:{fleet.deployment.port}"), name
            assert not _reaches(words, fleet.deployment.superlink_address), name


def _reaches(words: list[str], address: str) -> bool:
    """Whether a connection can be opened from there."""
    host, port = address.rsplit(":", 1)
    knock = ["bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}"]
    done = subprocess.run([*words, *knock], capture_output=True, check=False, timeout=20)
    return done.returncode == 0
