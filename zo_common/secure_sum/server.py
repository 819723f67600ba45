"""The server's part in a secure sum: it relays keys and sealed shares, adds masked vectors, and removes the masks.

    advertisements → key lists → sealed shares → sharers → masked vectors → survivors → consents → shares → sum

It learns the sum of the survivors' vectors, exactly, and of no single one (Bonawitz et al., CCS 2017, figure 4).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import SecureAggregationError
from zo_common.secure_sum.boxes import BOX_BYTES, is_share
from zo_common.secure_sum.device import LEAST_COHORT, commitment
from zo_common.secure_sum.graph import Graph, cohort_of
from zo_common.secure_sum.masks import agree, new_private, pair_mask, public_of, self_mask
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
    mask_context,
)
from zo_common.secure_sum.node_keys import PeerKeys
from zo_common.secure_sum.quantiser import Quantiser
from zo_common.secure_sum.shamir import combine
from zo_common.secure_sum.terms import MOST_DEVICES, Terms
from zo_common.secure_sum.weights import capped


class SecureServer:
    """One secure sum: `add_…` takes one device's bytes, `close_…` ends a step and returns the messages to the devices.

    Signatures and revealed shares are verified before they count: a device that sends garbage is left out and named,
    and no other is blamed.

    Args:
        peers: the devices' public node keys, as far as they are known here; the signatures of others are passed on.

    Attributes:
        faulty: devices that made a sum impossible, by id, with what they did; leave them out of the next ones.
        disputed: devices of which one did, by id, with the dispute: nobody else can say which; leave all of them out of
            another attempt at this sum.

    Every `add_…` raises CodecError or SecureAggregationError for bytes that do not fit the device's turn: leave that
    device out. Every `close_…` raises SecureAggregationError where too few are left: the round stays empty.
    """

    def __init__(self, terms: Terms, peers: PeerKeys | None = None) -> None:
        self.terms, self._peers = terms, peers
        self.faulty: dict[int, str] = {}
        self.disputed: dict[int, str] = {}
        self._checksum = 0
        self._unopened: dict[int, set[int]] = {}  # devices whose boxes did not open, and who said so
        self._keys: dict[int, Advertisement] = {}
        self._sealed: dict[int, SealedShares] = {}
        self._graph = Graph(terms, ())
        self.weights: dict[int, int] = {}  # of the sharers, once sharing is closed
        self._sharers: Sharers | None = None
        self._survivors: frozenset[int] = frozenset()
        self._dropped: frozenset[int] = frozenset()
        self._masked: dict[int, NDArray[np.uint64]] = {}
        self._consents: dict[int, bytes] = {}
        self._shares: dict[int, dict[int, bytes]] = {}
        self._revealed: set[int] = set()

    def invitation(self) -> bytes:
        """Return the message to every device that may take part."""
        return Invitation(self.terms).encode()

    def _belongs(self, session: bytes, claimed: int, client_id: int, expected: Collection[int] | None) -> None:
        if session != self.terms.session:
            raise SecureAggregationError("an answer is of another session, such as an earlier round: it is left out")
        if claimed != client_id:
            raise SecureAggregationError(
                f"device {client_id} answered as device {claimed}: give each its own client-id"
            )
        if expected is not None and client_id not in expected:
            raise SecureAggregationError(f"device {client_id} was not asked, or had not taken the step before")

    def _enough(self, found: Collection[int], what: str) -> None:
        devices = len(self._graph.cohort)
        if len(found) < self.terms.needed(devices):
            raise SecureAggregationError(
                f"{len(found)} of {devices} devices {what}, {self.terms.needed(devices)} are needed: nothing is "
                "unmasked; lower secure-threshold if so many drop out every round"
            )

    def add_advertisement(self, client_id: int, data: bytes) -> None:
        """Step 1: add a device's public keys."""
        found = Advertisement.decode(data)
        self._belongs(found.session, found.client_id, client_id, None)
        if client_id in self._keys:
            raise SecureAggregationError(f"device {client_id} advertised twice: the first keys stay")
        self._check_signature(client_id, found.signed(), found.signature, "its keys")
        self._check_keys(found)
        self._keys[client_id] = found

    def _check_keys(self, found: Advertisement) -> None:
        """Refuse keys for which every other device would refuse the whole list."""
        taken = {public for key in self._keys.values() for public in (key.box_key, key.mask_key)}
        if found.box_key == found.mask_key or not taken.isdisjoint((found.box_key, found.mask_key)):
            raise SecureAggregationError(
                f"device {found.client_id} advertised a key that comes twice in this sum: it is left out; update it"
            )
        try:
            for public in (found.box_key, found.mask_key):
                agree(new_private(), public)
        except SecureAggregationError:
            raise SecureAggregationError(
                f"device {found.client_id} advertised a key that gives no shared secret: it is left out; update it"
            ) from None

    def _check_signature(self, client_id: int, data: bytes, signature: bytes, what: str) -> None:
        if self._peers is not None and client_id in self._peers and not self._peers.holds(client_id, data, signature):
            raise SecureAggregationError(
                f"device {client_id} did not sign {what} with its node key, and others would refuse the sum: it is "
                "left out; look at its node key"
            )

    def signed(self) -> int:
        """Return the number of advertisements with a signature."""
        return sum(bool(key.signature) for key in self._keys.values())

    def close_advertising(self) -> dict[int, bytes]:
        """Return key lists by client id, each with the device's own keys and its neighbours'."""
        if not LEAST_COHORT <= len(self._keys) <= MOST_DEVICES:
            raise SecureAggregationError(
                f"{len(self._keys)} devices advertised keys, expected {LEAST_COHORT} … {MOST_DEVICES}: raise "
                "min-clients"
            )
        self._graph = Graph(self.terms, cohort_of(self._keys))
        lists: dict[int, bytes] = {}
        whole = b""
        for client in self._graph.cohort:
            closed = self._graph.closed(client)
            if closed is self._graph.cohort and whole:  # all with all: one list for everyone
                lists[client] = whole
                continue
            keys = tuple(self._keys[other] for other in closed)
            lists[client] = whole = KeyList(self.terms.session, self._graph.cohort, keys).encode()
        return lists

    def add_shares(self, client_id: int, data: bytes) -> None:
        """Step 2: add a device's sealed shares."""
        found = SealedShares.decode(data)
        self._belongs(found.session, found.client_id, client_id, self._graph.cohort)
        if client_id in self._sealed:
            raise SecureAggregationError(f"device {client_id} sent shares twice: the first stay")
        if tuple(found.boxes) != self._graph.neighbours(client_id):
            raise SecureAggregationError(f"device {client_id} sent shares for others than its neighbours")
        self._sealed[client_id] = found

    def close_sharing(self, weights: Mapping[int, int]) -> dict[int, bytes]:
        """Return the list of sharers with their weights, one for all, by client id; it goes with the plans.

        Args:
            weights: what devices claim, from 1, for at least all sharers; ignored where the terms are not weighted.
        """
        self._enough(self._sealed, "sent shares")
        clients = sorted(self._sealed)
        if self.terms.weighted:
            least = max(LEAST_COHORT, self.terms.needed(len(self._graph.cohort)))
            self.weights = capped({client: weights[client] for client in clients}, least, Quantiser().most_weight)
        else:
            self.weights = dict.fromkeys(clients, 1)
        listed = tuple(self.weights.values()) if self.terms.weighted else ()
        self._sharers = Sharers(self.terms.session, self._graph.bitmap(clients), listed)
        return dict.fromkeys(clients, self._sharers.encode())

    def check_masked(self, client_id: int, data: bytes) -> NDArray[np.uint64]:
        """Return a device's masked vector, not counted yet: uint64, shape (terms.length,)."""
        found = MaskedInput.decode(data)
        self._belongs(found.session, found.client_id, client_id, self._sealed)
        if len(found.values) != self.terms.length:
            raise SecureAggregationError(
                f"device {client_id} sent {len(found.values)} numbers, the terms say {self.terms.length}: update it"
            )
        return found.values

    def close_masking(self, masked: Mapping[int, NDArray[np.uint64]], checksum: int = 0) -> dict[int, bytes]:
        """Step 3: devices whose checked vectors are given survive, all others dropped out; return messages by id.

        Args:
            checksum: of the weights at which they were trained.
        """
        self._checksum = checksum
        self._enough(masked, "sent masked vectors")
        self._masked = dict(masked)
        self._survivors = frozenset(masked)
        self._dropped = frozenset(self._sealed) - self._survivors
        data = Survivors(self.terms.session, self._graph.bitmap(self._survivors)).encode()
        return dict.fromkeys(sorted(self._survivors), data)

    def add_consent(self, client_id: int, data: bytes) -> None:
        """Step 4: add a device's consent."""
        found = Consent.decode(data)
        self._belongs(found.session, found.client_id, client_id, self._survivors)
        assert self._sharers is not None
        signed = agreement(self._sharers, self._graph.digest, self._graph.bitmap(self._survivors), self._checksum)
        self._check_signature(client_id, signed, found.signature, "the survivors that it was sent")
        self._consents[client_id] = found.signature

    def close_consent(self) -> dict[int, bytes]:
        """Return requests to reveal for those that consented, by id: neighbours' signatures and the boxes for each."""
        self._enough(self._consents, "consented")
        requests = {}
        for client in sorted(self._consents):
            near = self._graph.neighbours(client)
            signatures = {other: self._consents[other] for other in near if self._consents.get(other)}
            boxes = {other: self._sealed[other].boxes[client] for other in near if other in self._sealed}
            requests[client] = RevealRequest(self.terms.session, signatures, boxes).encode()
        return requests

    def add_revealed(self, client_id: int, data: bytes) -> None:
        """Step 5: add a device's revealed shares."""
        found = RevealedShares.decode(data)
        self._belongs(found.session, found.client_id, client_id, self._consents)
        expected = {other for other in self._graph.closed(client_id) if other in self._sealed}
        if not {client_id} <= set(found.shares) <= expected or client_id in self._revealed:
            raise SecureAggregationError(f"device {client_id} revealed other shares than it was asked for, or twice")
        for owner, share in found.shares.items():
            hashes = self._hashes(owner, client_id)
            of_key = owner not in self._survivors
            if not is_share(self.terms.session, owner, client_id, hashes, share, of_key=of_key):
                raise SecureAggregationError(
                    f"device {client_id} revealed a share that device {owner} did not make for it: none of its shares "
                    "counts"
                )
        self._revealed.add(client_id)
        for owner in expected - set(found.shares):
            self._unopened.setdefault(owner, set()).add(client_id)
        for owner, share in found.shares.items():
            self._shares.setdefault(owner, {})[self._graph.point(client_id)] = share

    def _hashes(self, owner: int, holder: int) -> bytes:
        sealed = self._sealed[owner]
        return sealed.own if owner == holder else sealed.boxes[holder][BOX_BYTES:]

    def total(self) -> NDArray[np.int64]:
        """Return the exact sum of the survivors' vectors, int64, shape (terms.length,).

        Raises:
            SecureAggregationError: too few shares of some devices, or shares that make no secret of them: all of these
                are then `faulty` or `disputed`; nothing is returned.
        """
        session, length = self.terms.session, self.terms.length
        total = np.zeros(length, np.uint64)
        seeds = {client: self._seed(client) for client in self._masked}
        keys = {client: self._mask_key(client) for client in sorted(self._dropped) if self._alive_beside(client)}
        if found := self.faulty | self.disputed:
            words = "; ".join(dict.fromkeys(found[client] for client in sorted(found)))
            raise SecureAggregationError(f"{words}: the sum cannot be opened")
        for client, values in self._masked.items():
            total += values - self_mask(seeds[client], session, client, length)
        assert self._sharers is not None
        context = mask_context(self._sharers, self._checksum)
        for dropped, private in keys.items():  # the masks that survivors added for it
            for other in self._alive_beside(dropped):
                total -= pair_mask(agree(private, self._keys[other].mask_key), context, other, dropped, length)
        return total.view(np.int64)

    def _alive_beside(self, dropped: int) -> list[int]:
        return [other for other in self._graph.neighbours(dropped) if other in self._survivors]

    def _seed(self, client: int) -> bytes:
        seed = self._secret(client)
        if seed and commitment(seed) != self._sealed[client].commitment:
            self._blame(client, "shared another self mask than it committed to")
        return seed

    def _mask_key(self, dropped: int) -> bytes:
        private = self._secret(dropped)
        if private and public_of(private) != self._keys[dropped].mask_key:
            self._blame(dropped, "shared another mask key than it advertised")
        return private

    def _secret(self, owner: int) -> bytes:
        """Return a secret from its shares; empty if somebody is to blame that there is none.

        Raises:
            SecureAggregationError: too few shares, as of devices that fell silent.
        """
        found, closed = self._shares.get(owner, {}), self._graph.closed(owner)
        needed, unopened = self.terms.needed(len(closed)), self._unopened.get(owner, set())
        if len(found) < needed <= len(found) + len(unopened):
            self._accuse(owner, unopened, len(closed))
            return b""
        try:
            return combine(found, needed)
        except SecureAggregationError:
            if len(found) < needed:
                raise
            self._blame(owner, "made shares that do not fit together")  # each is what its hash says
            return b""

    def _accuse(self, owner: int, holders: set[int], devices: int) -> None:
        """Blame the owner of shares that so many holders cannot use; if they are few, they may lie as well."""
        if len(holders) > 1 and 3 * len(holders) >= devices:
            self._blame(owner, f"sealed shares that {len(holders)} devices cannot open")
            return
        names = ", ".join(map(str, sorted(holders)))
        reason = f"device {owner} sealed shares that devices {names} cannot open, or they can and do not say so"
        self.disputed |= dict.fromkeys([owner, *holders], reason)

    def _blame(self, client: int, reason: str) -> None:
        self.faulty[client] = f"device {client} {reason}"
