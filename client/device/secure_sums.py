"""A device's side of secure sums: the steps that need no training, and the mask over what a training measured.

Whoever trains also adds the noise and masks, in the same process: a plain reply leaves it as little as a recording.
The secrets of a sum are in that process's memory (or in Flower's, `client.secure_sum`) and on no disk; a device that
restarts within a round has dropped out of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from client.device.masked_seeds import Seeds
from client.device.sum_keys import NO_PEERS, SumKeys
from client.error_text import DroppedOut
from zo_common.errors import Refusal, SecureAggregationError, ZOError
from zo_common.privacy.discrete_gaussian import discrete_gaussians
from zo_common.privacy.mechanism import Mechanism
from zo_common.secure_sum.device import Noise, Phase, SecureDevice
from zo_common.secure_sum.masks import public_of
from zo_common.secure_sum.messages import Invitation, KeyList, RevealRequest, Sharers, Survivors
from zo_common.wire.masked_reply import bare, encode_masked, vector_of
from zo_common.wire.plan import Plan, Reply, Status, encode_reply

if TYPE_CHECKING:  # its module imports torch, which a process that only relays does not load
    from zo_common.config.run import RunConfig

logger = logging.getLogger(__name__)
FAILED = "training failed on this device: its own log says why"
_SESSION = slice(4, 20)
_MOST_SUMS = 8


def noise_of(privacy: Mechanism | None, devices: int) -> Noise | None:
    """Return the integer noise that a device adds before masking: its share of a sum's noise at the device level.

    Shares are sized for the minimum number of devices whose sum may be opened; the shares of all others are added to
    it. The device computes this number itself, from the keys it received and the threshold that it enforces.

    Args:
        privacy: what the plan asks for; None, or noise that is not under the mask, gives None.
        devices: `SecureDevice.least_survivors`.
    """
    if privacy is None or not privacy.masked:
        return None
    sigma = privacy.share_units(devices)

    def add(values: NDArray[np.int64]) -> NDArray[np.int64]:
        # the last number is 0 for everyone
        return values + np.array([*discrete_gaussians(len(values) - 1, sigma), 0], np.int64)

    return add


class Store(Protocol):
    """Store of a device's sums between messages."""

    def find(self, session: bytes) -> SecureDevice | None:
        """Return the device in a sum."""

    def last_round(self, run_id: bytes) -> int:
        """Return the last round of a run that is over; a later one may be proposed."""

    def save(self, device: SecureDevice) -> None:
        """Store what the next message needs; of an ended sum, nothing but its round."""


class InMemory:
    """A resident process's sums, the last few; which rounds are over is for the memory of seeds to say."""

    def __init__(self) -> None:
        self._devices: OrderedDict[bytes, SecureDevice] = OrderedDict()

    def find(self, session: bytes) -> SecureDevice | None:
        """See `Store`."""
        return self._devices.get(session)

    def last_round(self, run_id: bytes) -> int:
        """See `Store`; 0, as a resumed run may ask for its round again, along other directions."""
        return 0

    def save(self, device: SecureDevice) -> None:
        """See `Store`."""
        self._devices.pop(device.terms.session, None)
        if device.phase is not Phase.ENDED:
            self._devices[device.terms.session] = device
        while len(self._devices) > _MOST_SUMS:
            self._devices.popitem(last=False)


class SecureSums:
    """The secure sums of one device.

    Args:
        keys: reads the device's keys and its peers', for each sum again: devices are enrolled and revoked.
        seeds: the memory of masked seeds.
        trusting: whether to warn that the server is trusted with keys, where it is.
        limited: whether the device's owner limits ε, or demands noise.
    """

    def __init__(
        self,
        keys: Callable[[], SumKeys],
        seeds: Seeds,
        store: Store,
        *,
        trusting: bool = True,
        limited: bool = False,
    ) -> None:
        self._keys, self._seeds, self._store, self._trusting = keys, seeds, store, trusting
        self._limited = limited
        self._lock = Lock()

    def step(self, data: bytes, client_id: int) -> bytes:
        """Answer a message of a sum that needs no training.

        Raises:
            SecureAggregationError, CodecError: the device refuses, and has dropped out of the sum.
        """
        if len(data) < _SESSION.stop:
            raise SecureAggregationError("a message of the secure sum is empty: update the older side")
        with self._lock:
            if data[3] == Invitation.KIND:
                return self._join(Invitation.decode(data), client_id)
            device = self._present(data[_SESSION])
            try:
                if data[3] == KeyList.KIND:
                    return device.share(KeyList.decode(data)).encode()
                if data[3] == Survivors.KIND:
                    return device.consent(Survivors.decode(data)).encode()
                return device.reveal(RevealRequest.decode(data)).encode()
            finally:
                self._store.save(device)

    def _join(self, invitation: Invitation, client_id: int) -> bytes:
        terms, keys = invitation.terms, self._keys()
        last = self._store.last_round(terms.run_id)
        if keys.peers is None and not last and self._trusting:
            logger.warning(NO_PEERS)
            self._trusting = False
        device = SecureDevice(terms, client_id, keys.signer, keys.peers, least=keys.least, last_round=last)
        try:
            return device.advertise().encode()
        finally:
            self._store.save(device)

    def _present(self, session: bytes) -> SecureDevice:
        device = self._store.find(session)
        if device is None:
            raise SecureAggregationError("no secure sum is under way here: the device joins the next one")
        return device

    def train(self, plan: Plan, asked: RunConfig, message: bytes, work: Callable[[], Reply]) -> bytes:
        """Train, and mask the scalars; return the packed answer.

        The device trains once in a sum, even if that fails. A device that must catch up says so, and is asked again.
        Why a training failed is only in the device's own log, as the message may contain a scalar.

        Args:
            asked: the settings that came with the plan, without the device's own.
            message: the packed list of sharers, which came with the plan.
            work: makes the plain reply; what it raises ends the sum.

        Raises:
            SecureAggregationError, CodecError, Refusal: the device refuses, and has dropped out of the sum.
        """
        sharers = Sharers.decode(message)
        with self._lock:
            device = self._present(sharers.session)
            phase, device.phase = device.phase, Phase.ENDED
            self._store.save(device)
        if phase is not Phase.SHARED:
            raise SecureAggregationError(f"a plan came in phase {phase.name} of a secure sum, expected SHARED")
        self._check(device, plan, asked)
        self._seeds.claim(plan.seed, _part_digest(device, message))
        try:
            reply = work()
        except (ZOError, DroppedOut):
            raise
        except Exception:  # of the recordings, as likely: its kind is not for the server, either
            logger.exception(f"round {plan.server_round}: training failed")
            return _failed(plan)
        if reply.status in (Status.BEHIND, Status.CHECKSUM):
            device.phase = phase
            with self._lock:
                self._store.save(device)
        if reply.status is not Status.OK:
            return _refused(plan, reply)
        answer = _masked(device, phase, plan, sharers, reply)
        with self._lock:
            self._store.save(device)
        return answer

    def _check(self, device: SecureDevice, plan: Plan, asked: RunConfig) -> None:
        from zo_common.wire.plan_digest import plan_digest  # imports torch

        if plan_digest(plan, asked) != device.terms.plan:
            raise SecureAggregationError(
                "the plan, or a setting, is not the one that the devices of this secure sum signed: all are to be "
                "asked alike"
            )
        if self._limited and plan.privacy is not None and plan.privacy.masked and not device.knows_peers:
            # a server could be all the others, however many it lists, and their shares of the noise none
            raise Refusal(
                "this device's owner limits ε or demands noise, and most of the plan's noise is other devices': "
                "without peers.keys nobody knows that there are any; put the deployment's file beside the node key"
            )


def _part_digest(device: SecureDevice, sharers: bytes) -> bytes:
    """Return the digest of a device's part in a sum and of its devices, 16 bytes; its key is of this sum alone."""
    data = device.terms.session + public_of(device.memory.mask_key) + sharers
    return hashlib.blake2b(data, digest_size=16, person=b"zo-asr/masked/v1").digest()


def _masked(device: SecureDevice, phase: Phase, plan: Plan, sharers: Sharers, reply: Reply) -> bytes:
    terms, weights = device.terms, device.weights(sharers)
    weight, most = weights.get(device.client_id, 0), max(weights.values())
    mine = min(reply.num_examples, most) if terms.weighted else 1  # the heaviest may count for less
    if reply.server_round != terms.server_round or weight != mine:
        raise SecureAggregationError(
            f"the plan is for round {reply.server_round} with weight {weight}, expected round {terms.server_round} and "
            f"{mine}, this device's examples: let it introduce itself again"
        )
    try:
        vector, clipped = vector_of(reply, weight, sum(weights.values()), plan.privacy)
    except SecureAggregationError:  # it depends on what was measured
        logger.exception(f"round {plan.server_round}: the measurement cannot be masked")
        return _failed(plan)
    device.phase = phase
    masked = device.mask(sharers, vector, noise_of(plan.privacy, device.least_survivors), reply.checksum)
    if reply.message:  # it is about this device's recordings: not for the server
        logger.info(f"round {reply.server_round}: {reply.message}")
    if clipped:
        logger.warning(f"round {reply.server_round}: {clipped} scalars were clipped, lower epsilon's noise")
    return encode_masked(replace(reply, message=""), masked.encode())


def _refused(plan: Plan, reply: Reply) -> bytes:
    """Return the answer that a reply without scalars gives: of a failed training, only that it failed."""
    if not reply.checksum or reply.status in (Status.BEHIND, Status.CHECKSUM):
        return encode_reply(bare(reply))
    logger.warning(f"round {reply.server_round}: training failed: {reply.message}")
    return _failed(plan)


def _failed(plan: Plan) -> bytes:
    return encode_reply(Reply(Status.ERROR, plan.server_round, 0, plan.client_id, plan.seed, 0, message=FAILED))
