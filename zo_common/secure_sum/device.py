"""One device's part in a secure sum: five steps, each once, in order; other requests are refused.

    advertise → share → mask → consent → reveal

Bonawitz et al., CCS 2017, figure 4, with the consistency check ("consent") for servers that lie about who dropped out.
The set of survivors is sent once and cannot change, so that no device reveals shares of both the mask key and the self
mask of another: therefore no single vector can be unmasked.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import CodecError, ConfigError, SecureAggregationError
from zo_common.secure_sum.boxes import BOX_BYTES, seal, share_hashes, unseal
from zo_common.secure_sum.graph import Graph
from zo_common.secure_sum.masks import agree, new_private, pair_mask, public_of, self_mask
from zo_common.secure_sum.messages import (
    Advertisement,
    Consent,
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
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys
from zo_common.secure_sum.quantiser import MOST_SUM
from zo_common.secure_sum.shamir import SECRET_BYTES, split
from zo_common.secure_sum.terms import Terms

logger = logging.getLogger(__name__)
Noise = Callable[[NDArray[np.int64]], NDArray[np.int64]]
LEAST_COHORT = 3  # of two devices, each would know the other's scalars from the sum


class Phase(IntEnum):
    """The last step that a device has taken; ENDED also after a refusal."""

    JOINED = 0
    ADVERTISED = 1
    SHARED = 2
    MASKED = 3
    CONSENTED = 4
    ENDED = 5


def commitment(seed: bytes) -> bytes:
    """Return the BLAKE2b-256 by which a server verifies a self mask's seed that it reconstructed."""
    return hashlib.blake2b(seed, digest_size=32, person=b"zo-asr/selfmask").digest()


@dataclass
class Memory:
    """The state of a device from step to step; its keys are private.

    Attributes:
        box_key, mask_key, seed: private keys of the sealed boxes and of the pairs' masks, and the self mask's seed.
        own: this device's shares of its own mask key and seed.
        cohort: client ids, ascending.
        keys: advertisements of this device and its neighbours, by client id.
        sharers, survivors: as the server sent them; of the survivors, the bitmap over the cohort.
        checksum: of the weights that this device was trained at.
    """

    box_key: bytes
    mask_key: bytes
    seed: bytes
    own: tuple[bytes, bytes] = (b"", b"")
    cohort: tuple[int, ...] = ()
    keys: dict[int, Advertisement] = field(default_factory=dict)
    sharers: Sharers | None = None
    survivors: bytes = b""
    checksum: int = 0


class SecureDevice:
    """A device in one secure sum, with fresh keys for it alone.

    Args:
        terms: the server's proposal.
        client_id: id of this device.
        signer: its node key, if it has one.
        peers: the other devices' public node keys; None: the server is trusted not to swap keys. With them the device
            insists on terms that hold against a server that lies: a threshold of at least 2/3, masks with all others.
        least: minimum size of a cohort in which the device takes part; with peers, or above 3, also of the smallest sum
            that the threshold lets the others open.
        last_round: the last round of this run that the device took part in; this one must be later.
        memory: state after earlier steps; default: fresh keys.

    Raises:
        SecureAggregationError: the round is over or under way already, or the terms do not hold against a liar.
    """

    def __init__(
        self,
        terms: Terms,
        client_id: int,
        signer: NodeSigner | None = None,
        peers: PeerKeys | None = None,
        *,
        least: int = LEAST_COHORT,
        last_round: int = 0,
        memory: Memory | None = None,
    ) -> None:
        if terms.server_round <= last_round:
            raise SecureAggregationError(
                f"round {terms.server_round} was proposed after round {last_round}: a device sums once a round, so "
                "that no two sums differ by one device; continue with the next round"
            )
        if peers is not None and signer is None:
            raise SecureAggregationError("peer-keys is set without node-key: others could not verify this device")
        if peers is not None:
            try:
                terms.check_against_liars()
            except ConfigError as error:
                raise SecureAggregationError(f"round {terms.server_round}: {error}") from None
        self.terms, self.client_id, self.phase = terms, client_id, Phase.JOINED
        self._signer, self._peers, self.least = signer, peers, max(least, LEAST_COHORT)
        self.memory = memory or Memory(new_private(), new_private(), secrets.token_bytes(SECRET_BYTES))
        self._graph = Graph(terms, self.memory.cohort)

    def _begin(self, before: Phase, after: Phase, session: bytes) -> None:
        """Begin a step, which is taken once even if it fails: a second try with other data would be an oracle."""
        found, self.phase = self.phase, Phase.ENDED
        if found is not before:
            self._refuse(f"step {after.name} was asked for in phase {found.name}, expected {before.name}")
        if session != self.terms.session:
            self._refuse("a message is of another session, such as an earlier round")

    def _refuse(self, message: str) -> NoReturn:
        self.phase = Phase.ENDED
        raise SecureAggregationError(
            f"device {self.client_id} leaves the secure sum of round {self.terms.server_round}: {message}; it takes "
            "part in the next round"
        )

    def _members(self, bitmap: bytes, what: str) -> frozenset[int]:
        try:
            return self._graph.members(bitmap)
        except CodecError as error:
            self._refuse(f"{what}: {error}")

    def advertise(self) -> Advertisement:
        """Step 1: return two fresh public keys, signed by the node key if there is one."""
        self._begin(Phase.JOINED, Phase.ADVERTISED, self.terms.session)
        box, mask = public_of(self.memory.box_key), public_of(self.memory.mask_key)
        bare = Advertisement(self.terms.session, self.client_id, box, mask)
        self.phase = Phase.ADVERTISED
        if self._signer is None:
            return bare
        return Advertisement(bare.session, bare.client_id, box, mask, self._signer.sign(bare.signed()))

    def share(self, keys: KeyList) -> SealedShares:
        """Step 2: return shares of the mask key and of the self mask's seed, sealed for each neighbour.

        Raises:
            SecureAggregationError: too few devices, this device not in the list or with other keys, a key that comes
                twice, other neighbours than the graph's, or a key that its device's node key did not sign.
        """
        self._begin(Phase.ADVERTISED, Phase.SHARED, keys.session)
        self._check(keys)
        self.memory.cohort, self.memory.keys = keys.cohort, {key.client_id: key for key in keys.keys}
        self._graph = Graph(self.terms, keys.cohort)
        closed = self._graph.closed(self.client_id)
        needed = self.terms.needed(len(closed))
        points = [self._graph.point(other) for other in closed]
        of_key, of_seed = (split(secret, needed, points) for secret in (self.memory.mask_key, self.memory.seed))
        pairs = {c: (of_key[p], of_seed[p]) for c, p in zip(closed, points, strict=True)}
        self.memory.own = pairs.pop(self.client_id)
        session, mine = keys.session, self.client_id
        boxes = {
            other: seal(self.memory.box_key, self.memory.keys[other].box_key, session, mine, other, pair)
            + share_hashes(session, mine, other, pair)
            for other, pair in pairs.items()
        }
        self.phase = Phase.SHARED
        own = share_hashes(session, mine, mine, self.memory.own)
        return SealedShares(session, mine, commitment(self.memory.seed), own, boxes)

    def _check(self, keys: KeyList) -> None:
        mine = public_of(self.memory.box_key), public_of(self.memory.mask_key)
        if len(keys.cohort) < self.least:
            self._refuse(f"the cohort has {len(keys.cohort)} devices, expected at least {self.least}")
        fewest = self.terms.needed(len(keys.cohort))
        if fewest < self.least and (self._peers is not None or self.least > LEAST_COHORT):
            # the others open the sum of so few, whatever this device says then: it does not mask
            message = f"{fewest} of {len(keys.cohort)} devices would be enough to open the sum"
            self._refuse(f"{message}, expected at least {self.least}")
        if self.client_id not in keys.cohort:
            self._refuse("the key list leaves this device out")
        closed = Graph(self.terms, keys.cohort).closed(self.client_id)
        if self._peers is not None and closed != keys.cohort:
            # the server could choose who is next to whom, and who drops out
            self._refuse(
                f"it would mask with {len(closed) - 1} of {len(keys.cohort) - 1} others; it has peers.keys and masks "
                "with all: set secure-neighbours=0"
            )
        if tuple(key.client_id for key in keys.keys) != closed:
            self._refuse("the key list holds keys of other devices than its neighbours and itself")
        known = [public for key in keys.keys for public in (key.box_key, key.mask_key)]
        if len(set(known)) != len(known):
            self._refuse("one key comes twice in the key list")
        for key in keys.keys:
            if key.client_id == self.client_id:
                if (key.box_key, key.mask_key) != mine:
                    self._refuse("the key list shows other keys for this device than it sent: they were swapped")
            elif self._peers is not None:
                if key.client_id not in self._peers:
                    self._refuse(f"device {key.client_id} is not in peer-keys: copy the deployment's file again")
                if not self._peers.holds(key.client_id, key.signed(), key.signature):
                    self._refuse(
                        f"the keys of device {key.client_id} are not signed by its node key: they were swapped"
                    )

    @property
    def knows_peers(self) -> bool:
        """Whether the others' keys are those of enrolled devices, and not the server's word."""
        return self._peers is not None

    @property
    def least_survivors(self) -> int:
        """Minimum number of survivors with which this device helps to open the sum, and so of shares of noise in it."""
        return self.terms.needed(len(self._graph.cohort))

    def weights(self, sharers: Sharers) -> dict[int, int]:
        """Return the weight of each sharer by client id; 1 where every device counts once."""
        members = sorted(self._members(sharers.bitmap, "the list of sharers"))
        if len(sharers.weights) != (len(members) if self.terms.weighted else 0) or 0 in sharers.weights:
            self._refuse(
                f"{len(sharers.weights)} weights came with {len(members)} sharers, expected one of each from 1"
            )
        return dict(zip(members, sharers.weights or [1] * len(members), strict=True))

    def mask(
        self, sharers: Sharers, values: NDArray[np.int64], noise: Noise | None = None, checksum: int = 0
    ) -> MaskedInput:
        """Step 3: return the vector plus the self mask plus the pairwise masks, modulo 2**64.

        Args:
            values: int64, shape (terms.length,), already times the device's weight.
            noise: adds integer noise of the same shape before masking, as for device-level differential privacy: the
                sum then contains the noise of all survivors.
            checksum: of the weights at which the values were measured; masks cancel among devices with one.

        Raises:
            SecureAggregationError: too few devices sent shares, or a number so large that the sum could overflow.
        """
        self._begin(Phase.SHARED, Phase.MASKED, sharers.session)
        active = self._members(sharers.bitmap, "the list of sharers")
        self._check_present(active, "sent shares")
        if values.dtype != np.int64 or values.shape != (self.terms.length,):
            self._refuse(f"its vector is {values.dtype}{values.shape}, the terms say int64({self.terms.length},)")
        if noise is not None:
            values = noise(values)
        weights = self.weights(sharers)
        self._check_share(weights, active)
        self._check_size(values, weights)
        session, length = self.terms.session, self.terms.length
        context = mask_context(sharers, checksum)
        masked = values.view(np.uint64) + self_mask(self.memory.seed, session, self.client_id, length)
        for other in self._graph.neighbours(self.client_id):
            if other in active:
                secret = agree(self.memory.mask_key, self.memory.keys[other].mask_key)
                masked += pair_mask(secret, context, self.client_id, other, length)
        self.memory.sharers, self.memory.checksum, self.phase = sharers, checksum, Phase.MASKED
        return MaskedInput(session, self.client_id, masked)

    def _check_share(self, weights: dict[int, int], members: frozenset[int]) -> None:
        """Check that no device is more than half of a sum, which would reveal that device's vector."""
        total = sum(weights[member] for member in members)
        heaviest = max(members, key=lambda member: weights[member])
        if weights[heaviest] > total // 2:
            self._refuse(
                f"the weight of device {heaviest} is {weights[heaviest]} of {total} in all, expected at most half; set "
                "weighting=uniform"
            )

    def _check_size(self, values: NDArray[np.int64], weights: dict[int, int]) -> None:
        if values.dtype != np.int64 or values.shape != (self.terms.length,):
            self._refuse("the noise changed type or shape of its vector")
        most = MOST_SUM * weights[self.client_id] // sum(weights.values())
        if not (-most <= int(values.min()) and int(values.max()) <= most):
            self._refuse(f"its vector exceeds {most}, its part of 2**63: the sum could overflow; use a coarser grid")

    def _check_present(self, members: frozenset[int], what: str) -> None:
        """Check that enough of the cohort and of this device's neighbourhood are present, itself included."""
        closed = self._graph.closed(self.client_id)
        near = sum(other in members for other in closed)
        if self.client_id not in members:
            self._refuse(f"it is not listed among those that {what}")
        for found, devices in ((len(members), len(self._graph.cohort)), (near, len(closed))):
            if found < self.terms.needed(devices):
                self._refuse(f"{found} of {devices} devices {what}, expected at least {self.terms.needed(devices)}")

    def consent(self, survivors: Survivors) -> Consent:
        """Step 4: sign whose vectors are in the sum; from here on the device accepts no other set.

        Raises:
            SecureAggregationError: fewer survivors than the threshold, or one that had sent no shares.
        """
        self._begin(Phase.MASKED, Phase.CONSENTED, survivors.session)
        alive = self._members(survivors.bitmap, "the list of survivors")
        sharers = self._sharers()
        if not alive <= self._members(sharers.bitmap, "the list of sharers"):
            self._refuse("a survivor had sent no shares")
        self._check_present(alive, "survived")
        if self._peers is not None:  # else the server is trusted with who drops out
            self._check_share(self.weights(sharers), alive)
        self.memory.survivors, self.phase = survivors.bitmap, Phase.CONSENTED
        signature = self._signer.sign(self._agreed()) if self._signer else b""
        return Consent(survivors.session, self.client_id, signature)

    def _sharers(self) -> Sharers:
        if self.memory.sharers is None:
            self._refuse("no list of sharers came")
        return self.memory.sharers

    def _agreed(self) -> bytes:
        """Return what all devices must have received alike before any reveals shares."""
        return agreement(self._sharers(), self._graph.digest, self.memory.survivors, self.memory.checksum)

    def reveal(self, request: RevealRequest) -> RevealedShares:
        """Step 5: return the share of each survivor's self mask, and of the mask key of each that dropped out.

        Of a device whose box does not open, or does not hold what it said, no share is returned.

        Raises:
            SecureAggregationError: too few neighbours signed the same survivors (with peer keys), or boxes are missing
                or of other devices.
        """
        self._begin(Phase.CONSENTED, Phase.ENDED, request.session)
        sharers = self._members(self._sharers().bitmap, "sharers")
        alive = self._members(self.memory.survivors, "survivors")
        self._check_consents(request, alive)
        senders = {other for other in self._graph.neighbours(self.client_id) if other in sharers}
        if set(request.boxes) != senders:
            self._refuse(f"boxes of {len(request.boxes)} devices came, expected those of {len(senders)} neighbours")
        shares = {self.client_id: self.memory.own[1]}
        for sender, entry in request.boxes.items():
            pair = self._opened(sender, entry)
            if pair is not None:
                shares[sender] = pair[1] if sender in alive else pair[0]
        return RevealedShares(request.session, self.client_id, shares)

    def _opened(self, sender: int, entry: bytes) -> tuple[bytes, bytes] | None:
        """Return the shares of a sender's mask key and self mask; None, with a warning, if the box holds others."""
        session, key = self.terms.session, self.memory.keys[sender].box_key
        try:
            pair = unseal(self.memory.box_key, key, session, sender, self.client_id, entry[:BOX_BYTES])
            if share_hashes(session, sender, self.client_id, pair) == entry[BOX_BYTES:]:
                return pair
            message = f"the shares of device {sender} are not those whose hashes it sent"
        except SecureAggregationError as error:
            message = str(error)
        logger.warning(f"secure sum of round {self.terms.server_round}: {message}")
        return None

    def _check_consents(self, request: RevealRequest, alive: frozenset[int]) -> None:
        if self._peers is None:
            return
        signed = self._agreed()
        closed = self._graph.closed(self.client_id)
        consents = 1  # its own
        for other in closed:
            if other != self.client_id and other in alive and other in request.signatures:
                if self._peers.holds(other, signed, request.signatures[other]):
                    consents += 1
                else:
                    logger.warning(
                        f"secure sum of round {self.terms.server_round}: device {other} did not sign the same survivors"
                    )
        needed = self.terms.needed(len(closed))
        if consents < needed:
            self._refuse(f"{consents} neighbours signed the same survivors, expected at least {needed}")
