"""The cost of secure aggregation: bytes of one device in a round, and seconds of one device and of the server.

All devices are in this one process, so nothing of a network is in the seconds, which are of CPU time: other programs on
the machine do not count. One device is real in every step, with node keys (ECDSA P-384) and signatures of all others.
Of the other devices, keys, signatures and what they seal for the real one are real; their shares come from one common
polynomial, which costs the server the same and this program little, and their masked vectors are random, so the sum
itself is not looked at here (`tests/zo_common/secure_sum/test_secure_sum.py` does). One device in twenty drops out
after sharing: the server has to remove its masks from all its neighbours' vectors.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from benchmarks.harness.rows import amount, row, store
from zo_common.device_key import new_device_key
from zo_common.secure_sum.boxes import BOX_BYTES, seal, share_hashes
from zo_common.secure_sum.device import SecureDevice, commitment
from zo_common.secure_sum.graph import Graph
from zo_common.secure_sum.messages import (
    Advertisement,
    Consent,
    Invitation,
    KeyList,
    MaskedInput,
    RevealedShares,
    RevealRequest,
    SealedShares,
    Sharers,
    Survivors,
    agreement,
)
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys
from zo_common.secure_sum.server import SecureServer
from zo_common.secure_sum.shamir import PRIME, SHARE_BYTES, split
from zo_common.secure_sum.terms import Terms
from zo_common.wire.masked_reply import vector_of
from zo_common.wire.plan import Reply, Status, encode_reply

SCALARS = 64
DEVICES = (10, 100, 1000)
NEIGHBOURS = 100
DROPPED = 0.05
T = TypeVar("T")


@dataclass
class Cost:
    """Bytes of one device both ways, and CPU seconds of it and of the server, in one round."""

    devices: int
    neighbours: int
    up: int = 0
    down: int = 0
    device_seconds: float = 0.0
    server_seconds: float = 0.0

    def device(self, work: Callable[[], T]) -> T:
        """Return time of the real device."""
        return self._timed("device_seconds", work)

    def server(self, work: Callable[[], T]) -> T:
        """Return time of the server."""
        return self._timed("server_seconds", work)

    def _timed(self, where: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        result = work()
        setattr(self, where, getattr(self, where) + time.process_time() - start)
        return result


class Others:
    """All devices but device 0, as far as they must be real."""

    def __init__(self, terms: Terms, count: int) -> None:
        self.terms, self.cohort = terms, tuple(range(count))
        self.graph = Graph(terms, self.cohort)
        keys = [new_device_key() for _ in self.cohort]
        self.signers = [NodeSigner(private) for private, _ in keys]
        peers = PeerKeys({client: public for client, (_, public) in enumerate(keys)})
        self.peers = None if terms.neighbours else peers  # with them a device masks with all others
        self.devices = {client: SecureDevice(terms, client, self.signers[client], self.peers) for client in self.cohort}
        size = len(self.graph.closed(0))
        base = split(bytes(32), terms.needed(size), [client + 1 for client in self.cohort])
        self._base = {point: int.from_bytes(share, "little") for point, share in base.items()}

    def share(self, owner: int, holder: int, *, of_key: bool) -> bytes:
        """Return the holder's share of one of the owner's secrets."""
        device = self.devices[owner]
        secret = int.from_bytes(device.memory.mask_key if of_key else device.memory.seed, "little")
        return ((self._base[holder + 1] + secret) % PRIME).to_bytes(SHARE_BYTES, "little")

    def sealed(self, client: int, target: Advertisement) -> SealedShares:
        """Return what a device sends: a real box for device 0, others of the same size."""
        device, near = self.devices[client], self.graph.neighbours(client)
        session = self.terms.session
        boxes = {other: os.urandom(BOX_BYTES) + self._hashes(client, other) for other in near}
        if 0 in boxes:
            pair = self.share(client, 0, of_key=True), self.share(client, 0, of_key=False)
            box = seal(device.memory.box_key, target.box_key, session, client, 0, pair)
            boxes[0] = box + self._hashes(client, 0)
        own = self._hashes(client, client)
        return SealedShares(session, client, commitment(device.memory.seed), own, boxes)

    def _hashes(self, owner: int, holder: int) -> bytes:
        pair = self.share(owner, holder, of_key=True), self.share(owner, holder, of_key=False)
        return share_hashes(self.terms.session, owner, holder, pair)

    def revealed(self, client: int, alive: frozenset[int]) -> RevealedShares:
        """Return what a survivor reveals, but of device 0, whose real shares it does not open here."""
        shares = {o: self.share(o, client, of_key=o not in alive) for o in self.graph.closed(client) if o}
        return RevealedShares(self.terms.session, client, shares)


def measure(count: int, neighbours: int = 0) -> Cost:
    """Return one round of so many devices."""
    length = SCALARS + 1
    terms = Terms(os.urandom(16), 1, length, 2 / 3, neighbours)
    cost, others = Cost(count, neighbours), Others(terms, count)
    server = SecureServer(terms, others.peers)
    real = others.devices[0]
    first = cost.server(server.invitation)
    Invitation.decode(first)
    mine = cost.device(real.advertise)
    for client in others.cohort:
        found = mine if client == 0 else others.devices[client].advertise()
        cost.server(lambda c=client, f=found: server.add_advertisement(c, f.encode()))  # type: ignore[misc]
    lists = cost.server(server.close_advertising)
    sealed = cost.device(lambda: real.share(KeyList.decode(lists[0])))
    for client in others.cohort:
        sent = (sealed if client == 0 else others.sealed(client, mine)).encode()
        cost.server(lambda c=client, s=sent: server.add_shares(c, s))  # type: ignore[misc]
    sharers = cost.server(lambda: server.close_sharing(dict.fromkeys(others.cohort, 1)))
    reply = Reply(Status.OK, 1, 0, 0, 0, 0, 1, 1.0, np.full((1, SCALARS), 0.5, np.float32))
    vector, _ = vector_of(reply, 1, count)
    listed = Sharers.decode(sharers[0])
    masked = cost.device(lambda: real.mask(listed, vector)).encode()
    alive = frozenset(others.cohort[: count - max(1, round(DROPPED * count))])
    cost.up += len(mine.encode()) + len(sealed.encode()) + len(masked)
    cost.down += len(first) + len(lists[0]) + len(sharers[0])
    _open(cost, server, others, alive, listed, masked)
    return cost


def _open(
    cost: Cost, server: SecureServer, others: Others, alive: frozenset[int], listed: Sharers, masked: bytes
) -> None:
    """Compute the sum from the masked vectors."""
    terms, real = others.terms, others.devices[0]
    values = {}
    for client in sorted(alive):
        random = np.frombuffer(os.urandom(8 * terms.length), "<u8").astype(np.uint64)
        data = MaskedInput(terms.session, client, random).encode() if client else masked
        values[client] = cost.server(lambda c=client, d=data: server.check_masked(c, d))  # type: ignore[misc]
    survivors = cost.server(lambda: server.close_masking(values))
    consent = cost.device(lambda: real.consent(Survivors.decode(survivors[0]))).encode()
    graph = others.graph
    agreed = agreement(listed, graph.digest, graph.bitmap(alive), 0)
    for client in sorted(alive):
        signed = (
            consent if client == 0 else Consent(terms.session, client, others.signers[client].sign(agreed)).encode()
        )
        cost.server(lambda c=client, s=signed: server.add_consent(c, s))  # type: ignore[misc]
    requests = cost.server(server.close_consent)
    revealed = cost.device(lambda: real.reveal(RevealRequest.decode(requests[0])))
    cost.up += len(consent) + len(revealed.encode())
    cost.down += len(survivors[0]) + len(requests[0])
    for client in sorted(alive):
        shown = (revealed if client == 0 else others.revealed(client, alive)).encode()
        cost.server(lambda c=client, s=shown: server.add_revealed(c, s))  # type: ignore[misc]
    # device 0's own shares are sealed for devices that do not open them here: those of the common polynomial stand in
    closed = graph.closed(0)
    server._shares[0] = {o + 1: others.share(0, o, of_key=False) for o in closed if o in alive}
    cost.server(server.total)


def rows_of(cost: Cost) -> list[dict[str, Any]]:
    """Return lines of the table."""
    near = f"{cost.neighbours} neighbours each" if cost.neighbours else "all with all"
    label = f"secure sum of {SCALARS} scalars, {cost.devices} devices, {near}"
    plain = len(encode_reply(Reply(Status.OK, 1, 0, 0, 0, 0, 1, 1.0, np.zeros((1, SCALARS), np.float32))))
    return [
        row(f"{label}: up, a device", {"median": cost.up}, unit="B", against=f"plain reply {amount(plain, 'B')}"),
        row(f"{label}: down, a device", {"median": cost.down}, unit="B"),
        row(f"{label}: CPU of a device", {"median": cost.device_seconds}, unit="s"),
        row(f"{label}: CPU of the server", {"median": cost.server_seconds}, unit="s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    arguments = parser.parse_args()
    costs = []
    for count in arguments.devices:
        for neighbours in (0, NEIGHBOURS) if count > 2 * NEIGHBOURS else (0,):
            costs.append(measure(count, neighbours))
            for line in rows_of(costs[-1]):
                print(f"{line['row']}: {amount(line['median'], line['unit'])}", flush=True)
    settings = {"scalars": SCALARS, "threshold": 2 / 3, "dropped": DROPPED, "signed": "ECDSA P-384"}
    rows = [line for cost in costs for line in rows_of(cost)]
    print(f"wrote {store('secure_aggregation', {**settings, 'costs': [asdict(c) for c in costs], 'rows': rows})}")


if __name__ == "__main__":
    main()
