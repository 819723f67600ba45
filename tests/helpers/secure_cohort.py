"""Devices of one secure sum in one process, through the real bytes, with drop-outs and everything the server gets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from zo_common.secure_sum.device import Noise, SecureDevice
from zo_common.secure_sum.messages import Invitation, KeyList, RevealRequest, Sharers, Survivors
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys
from zo_common.secure_sum.server import SecureServer
from zo_common.secure_sum.state import dump_device, load_device
from zo_common.secure_sum.terms import Terms

STEPS = ("share", "mask", "consent", "reveal")
Tamper = Callable[[str, int, bytes], bytes]


@lru_cache
def node_key(client_id: int) -> tuple[bytes, bytes]:
    """A node key for tests: OpenSSH private, public."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private, key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def keys_of(clients: Collection[int]) -> tuple[dict[int, NodeSigner], PeerKeys]:
    """Signers of some devices and the list that all of them hold."""
    signers = {client: NodeSigner(node_key(client)[0]) for client in clients}
    return signers, PeerKeys({client: node_key(client)[1] for client in clients})


@dataclass
class Cohort:
    """One secure sum.

    Attributes:
        drops: at which step a device is silent, and from then on.
        checksums: of the weights at which a device has trained; 0 if not given.
        to_device, to_server: may alter bytes on the way: (step, client, bytes) → bytes.
        received: all bytes the server got.
        refused: what each device, or the server about it, refused.
    """

    terms: Terms
    vectors: Mapping[int, NDArray[np.int64]]
    drops: Mapping[int, str] = field(default_factory=dict)
    signed: bool = False
    noise: Noise | None = None
    weights: Mapping[int, int] | None = None
    checksums: Mapping[int, int] = field(default_factory=dict)
    to_device: Tamper = lambda step, client, data: data
    to_server: Tamper = lambda step, client, data: data
    received: list[bytes] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signers, peers = keys_of(self.vectors) if self.signed else ({}, None)
        self.signers, self.peers = signers, peers
        self.server = SecureServer(self.terms)
        terms = Invitation.decode(self.server.invitation()).terms
        self.devices = {c: SecureDevice(terms, c, signers.get(c), peers) for c in self.vectors}
        self._gone: set[int] = set()

    def _step(self, name: str, work: Callable[[SecureDevice, bytes], bytes], outgoing: Mapping[int, bytes]) -> None:
        take = {
            "advertise": self.server.add_advertisement,
            "share": self.server.add_shares,
            "consent": self.server.add_consent,
            "reveal": self.server.add_revealed,
        }
        self.masked: dict[int, NDArray[np.uint64]] = self.__dict__.get("masked", {})
        for client, data in outgoing.items():
            if self.drops.get(client) == name:
                self._gone.add(client)
            if client in self._gone:
                continue
            try:
                device = load_device(dump_device(self.devices[client]), self.signers.get(client), self.peers)
                self.devices[client] = device
                answer = self.to_server(name, client, work(device, self.to_device(name, client, data)))
                self.received.append(answer)
                if name == "mask":
                    self.masked[client] = self.server.check_masked(client, answer)
                else:
                    take[name](client, answer)
            except Exception as error:
                self.refused[client] = f"{type(error).__name__}: {error}"
                self._gone.add(client)

    def run(self) -> NDArray[np.int64]:
        """The sum; raises what the server raises."""
        server = self.server
        self._step("advertise", lambda d, _: d.advertise().encode(), dict.fromkeys(self.devices, b""))
        self._step("share", lambda d, data: d.share(KeyList.decode(data)).encode(), server.close_advertising())
        weights = self.weights or dict.fromkeys(self.vectors, 1)
        self._step(
            "mask",
            lambda d, data: d.mask(
                Sharers.decode(data), self.vectors[d.client_id], self.noise, self.checksums.get(d.client_id, 0)
            ).encode(),
            server.close_sharing(weights),
        )
        alive = server.close_masking(self.masked)
        self._step("consent", lambda d, data: d.consent(Survivors.decode(data)).encode(), alive)
        self._step("reveal", lambda d, data: d.reveal(RevealRequest.decode(data)).encode(), server.close_consent())
        return server.total()

    def plain(self) -> NDArray[np.int64]:
        """The sum of the survivors' vectors as they are."""
        total = np.zeros(self.terms.length, np.int64)
        for client in self.masked:
            total += self.vectors[client]
        return total


def vectors_of(clients: Collection[int], length: int, seed: int = 0) -> dict[int, NDArray[np.int64]]:
    """Vectors of the size that quantised scalars have."""
    return {
        client: np.random.default_rng([seed, client]).integers(-(1 << 38), 1 << 38, length, endpoint=True)
        for client in clients
    }


def terms_of(
    length: int = 4, server_round: int = 1, threshold: float = 2 / 3, neighbours: int = 0, **more: Any
) -> Terms:
    """Terms of a test's sum."""
    return Terms(b"a run of a test.", server_round, length, threshold, neighbours, **more)
