"""The keys with which a device takes part in secure sums, from the files that its owner names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from client.device.masked_seeds import MASKED_NAME, MaskedSeeds
from zo_common.binary.durable import PRIVATE, write_durably
from zo_common.errors import ConfigError, Refusal
from zo_common.secure_sum.device import LEAST_COHORT
from zo_common.secure_sum.node_keys import PEERS_NAME, NodeSigner, PeerKeys

logger = logging.getLogger(__name__)
NO_PEERS = (
    "secure aggregation: there is no peers.keys beside node.key, so this device trusts the server not to swap other "
    "devices' keys; copy the deployment's peers.keys there, and compare it on another way than through the server"
)


@dataclass(frozen=True)
class SumKeys:
    """Keys of a device for secure sums.

    Attributes:
        signer: its node key.
        peers: the other devices' public keys; None: the server is trusted not to swap keys.
        least: the minimum size of a cohort.
    """

    signer: NodeSigner | None = None
    peers: PeerKeys | None = None
    least: int = LEAST_COHORT


def sum_keys(options: Mapping[str, Any]) -> SumKeys:
    """Return the keys of a worker's options or of a node config.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    return SumKeys(*keys_of(options), int(options.get("secure-cohort") or LEAST_COHORT))


def seeds_beside(options: Mapping[str, Any]) -> MaskedSeeds | None:
    """Return the memory of masked seeds beside the node key; None without a key, whose device trusts the server."""
    if not options.get("node-key"):
        return None
    own = Path(str(options["node-key"]))
    return MaskedSeeds(own.with_name(f"{own.name}.{MASKED_NAME}"))


def keys_of(node: Mapping[str, Any]) -> tuple[NodeSigner | None, PeerKeys | None]:
    """Return the node's own key and its peers', from the files that the options name.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    own, peers = str(node.get("node-key") or ""), str(node.get("peer-keys") or "")
    if own and not peers:
        peers = _beside(Path(own))
    return (
        NodeSigner(_read("node-key", own)) if own else None,
        _peers(_read("peer-keys", peers)) if peers else None,
    )


def _beside(own: Path) -> str:
    """Return the path of the peers' keys beside a node key, empty where there never were any.

    That there were is remembered in a file: whoever can remove one of the two is to find that nothing works, not that
    the server is trusted again.
    """
    peers, seen = own.with_name(PEERS_NAME), own.with_name(f"{PEERS_NAME}.seen")
    if not peers.exists():
        if seen.exists():
            raise Refusal(
                f"{PEERS_NAME} was beside the node key and is missing: copy the deployment's file again, or remove "
                f"{seen.name} to trust the server with keys"
            )
        return ""
    if not seen.exists():
        try:
            write_durably(seen, b"", PRIVATE)
        except OSError as error:
            logger.warning(f"{seen} cannot be written ({error.strerror}): that there are peers' keys is not remembered")
    return str(peers)


@lru_cache(maxsize=2)
def _peers(data: bytes) -> PeerKeys:
    return PeerKeys.parse(data.decode(errors="replace"))


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting} {path!r} cannot be read ({error.strerror}): correct the node config") from None
