"""Attack: the list of the other devices' keys vanishes, and the device trusts the server with keys again."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from secure_cohort import node_key

from client.device.sum_keys import keys_of
from zo_common.errors import ConfigError, Refusal
from zo_common.secure_sum.node_keys import peer_line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device's, with its key and its peers'."""
    (tmp_path / "node.key").write_bytes(node_key(1)[0])
    (tmp_path / "peers.keys").write_text("".join(peer_line(n, node_key(n)[1].decode()) for n in (1, 2, 3)))
    return tmp_path


def test_what_was_there_once_is_asked_for(folder: Path) -> None:
    node = {"node-key": str(folder / "node.key")}
    assert keys_of(node)[1] is not None
    assert stat.S_IMODE((folder / "peers.keys.seen").stat().st_mode) == 0o600
    (folder / "peers.keys").unlink()
    for _ in range(2):
        with pytest.raises(Refusal, match=r"peers\.keys was beside the node key and is missing"):
            keys_of(node)


def test_a_file_that_is_named_and_missing(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"peer-keys .* cannot be read"):
        keys_of({"node-key": str(folder / "node.key"), "peer-keys": str(folder / "gone.keys")})


def test_a_device_that_never_had_any(folder: Path) -> None:
    (folder / "peers.keys").unlink()
    assert keys_of({"node-key": str(folder / "node.key")})[1] is None
    assert not (folder / "peers.keys.seen").exists()
