"""A device's side of secure aggregation over Flower, between the server's messages and the worker's plain replies.

Plain replies stay on the device: the ClientApp masks them. Its state is in `context.state`, which Flower keeps on the
device from message to message of a run; a device that restarts within a round has dropped out of it.

Node config, all optional:
    node-key: the file of the node's private key; keys are then signed with it.
    peer-keys: the file of all enrolled devices' public keys; if not set, `peers.keys` beside the node key, where there
        is one. Without it the server is trusted not to swap keys; where it was once and is gone, nothing is answered.
    secure-cohort: the minimum size of a cohort to take part in, 3 if not set.
    secure-only: refuse plans whose replies the server would see alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context
from numpy.typing import NDArray

from client.error_text import error_text
from client.place import known_place, place_of
from zo_common.binary.durable import PRIVATE, write_durably
from zo_common.errors import ConfigError, Refusal, SecureAggregationError, ZOError
from zo_common.privacy.discrete_gaussian import discrete_gaussians
from zo_common.privacy.mechanism import Mechanism
from zo_common.secure_sum.device import LEAST_COHORT, Noise, Phase, SecureDevice
from zo_common.secure_sum.messages import Invitation, KeyList, RevealRequest, Sharers, Survivors
from zo_common.secure_sum.node_keys import PEERS_NAME, NodeSigner, PeerKeys
from zo_common.secure_sum.state import dump_device, load_device
from zo_common.wire.masked_reply import bare, encode_masked, vector_of
from zo_common.wire.plan import Reply, Status, decode_plan, decode_reply, encode_reply

logger = logging.getLogger(__name__)
KEY = "secure"
_STATE = "zo-secure"
Ask = Callable[[], tuple[str, bytes | str]]
FAILED = "training failed on this device: its own log says why"
NO_PEERS = (
    "secure aggregation: there is no peers.keys beside node.key, so this device trusts the server not to swap other "
    "devices' keys; copy the deployment's peers.keys there, and compare it on another way than through the server"
)


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
        # the last number is the loss, which is 0 for everyone
        return values + np.array([*discrete_gaussians(len(values) - 1, sigma), 0], np.int64)

    return add


def answer(
    kind: str, record: Mapping[str, Any], settings: Mapping[str, Any], context: Context, ask: Ask
) -> tuple[str, bytes | str]:
    """Answer a message; `ask` returns the plain reply, which the server must not see if it has scalars.

    Returns:
        "reply" and bytes, or "error" and the sentence for the operator.
    """
    try:
        if kind == "secure":
            return "reply", _step(record[KEY], context)
        if kind in ("train", "evaluate", "look") and not (kind == "train" and settings.get("secure-aggregation")):
            if context.node_config.get("secure-only"):
                raise Refusal(
                    f"this device is set to secure-only and was asked to {kind} in the clear: set "
                    "secure-aggregation=true and evaluate-on=server"
                )
            return ask()
        return _train(record, context, ask) if kind == "train" else ask()
    except ZOError as error:
        return "error", error_text(error, known_place(context.node_config, context.node_id))
    except (KeyError, TypeError, ValueError) as error:
        if kind != "secure":  # of the model or the recordings, as likely
            raise
        logger.warning(f"a message of the secure sum cannot be used ({error!r})")
        kind = type(error).__name__
        return "error", f"a message of the secure sum cannot be used ({kind}): update the older side"


class _Kept:
    """The device in the present sum, as context.state has it; saved after errors too, so that no step is repeated."""

    def __init__(self, context: Context) -> None:
        self._records = context.state.config_records
        found = self._records.get(_STATE)
        self._signer, self._peers = keys_of(context.node_config)
        self.run: bytes = bytes(found["run"]) if found else b""  # type: ignore[arg-type]
        self.last: int = int(found["round"]) if found else 0  # type: ignore[arg-type]
        self.device: SecureDevice | None = None
        if found and found["device"]:
            self.device = load_device(bytes(found["device"]), self._signer, self._peers)  # type: ignore[arg-type]

    def join(self, invitation: Invitation, context: Context) -> SecureDevice:
        """Join a new sum."""
        terms = invitation.terms
        last = self.last if terms.run_id == self.run else 0
        node = context.node_config
        if self._peers is None and not last and "partition-id" not in node:
            logger.warning(NO_PEERS)
        least = int(node.get("secure-cohort", LEAST_COHORT))
        client_id = place_of(node, context.node_id).client_id
        self.device = SecureDevice(terms, client_id, self._signer, self._peers, least=least, last_round=last)
        self.run, self.last = terms.run_id, terms.server_round
        return self.device

    def present(self) -> SecureDevice:
        """Return the device in the present sum."""
        if self.device is None:
            raise SecureAggregationError("no secure sum is under way here: the device joins the next one")
        return self.device

    def save(self) -> None:
        """Save what the next message needs; the secrets of a finished sum are dropped."""
        alive = self.device is not None and self.device.phase is not Phase.ENDED
        data = dump_device(self.device) if alive and self.device is not None else b""
        self._records[_STATE] = ConfigRecord({"run": self.run, "round": self.last, "device": data})


def _step(data: Any, context: Context) -> bytes:
    """Answer a message of the sum that needs no training."""
    if not isinstance(data, bytes) or len(data) < 4:
        raise SecureAggregationError("a message of the secure sum is empty: update the older side")
    kept, kind = _Kept(context), data[3]
    try:
        if kind == Invitation.KIND:
            return kept.join(Invitation.decode(data), context).advertise().encode()
        device = kept.present()
        if kind == KeyList.KIND:
            return device.share(KeyList.decode(data)).encode()
        if kind == Survivors.KIND:
            return device.consent(Survivors.decode(data)).encode()
        return device.reveal(RevealRequest.decode(data)).encode()
    finally:
        kept.save()


def _train(record: Mapping[str, Any], context: Context, ask: Ask) -> tuple[str, bytes | str]:
    """Train, and mask the scalars.

    The device trains once in a sum, even if that fails. A device that must catch up says so, and is asked again. Why a
    training failed is only in the device's own log, as the message may contain a scalar.
    """
    if not isinstance(record.get(KEY), bytes):
        raise SecureAggregationError("a plan came without the list of sharers: its reply would be seen alone")
    sharers, privacy = Sharers.decode(record[KEY]), decode_plan(record["plan"]).privacy
    kept = _Kept(context)
    device = kept.present()
    phase, device.phase = device.phase, Phase.ENDED
    try:
        if phase is not Phase.SHARED:
            raise SecureAggregationError(f"a plan came in phase {phase.name} of a secure sum, expected SHARED")
        key, payload = ask()
        if key != "reply" or not isinstance(payload, bytes):
            return key, payload
        reply = decode_reply(payload)
        if reply.status in (Status.BEHIND, Status.CHECKSUM):
            device.phase = phase
        if reply.status is not Status.OK:
            return key, encode_reply(_without_reason(bare(reply)))
        terms = device.terms
        weight = reply.num_examples if terms.weighted else 1
        if reply.server_round != terms.server_round or sharers.weight != weight:
            raise SecureAggregationError(
                f"the plan is for round {reply.server_round} with weight {sharers.weight}, expected round "
                f"{terms.server_round} and {weight}, this device's examples: let it introduce itself again"
            )
        vector, clipped = vector_of(reply, weight, sharers.total, privacy)
        device.phase = phase
        masked = device.mask(sharers, vector, noise_of(privacy, device.least_survivors))
    finally:
        kept.save()
    if reply.message:  # it is about this device's recordings: not for the server
        logger.info(f"round {reply.server_round}: {reply.message}")
    if clipped:
        logger.warning(f"round {reply.server_round}: {clipped} scalars were clipped, lower epsilon's noise")
    return key, encode_masked(replace(reply, message=""), masked.encode())


def _without_reason(reply: Reply) -> Reply:
    """Return the part of a reply without scalars that the server may see: of a failed training, only that it failed."""
    if not reply.checksum or reply.status in (Status.BEHIND, Status.CHECKSUM):
        return reply
    logger.warning(f"round {reply.server_round}: training failed: {reply.message}")
    return replace(reply, status=Status.ERROR, message=FAILED)


def keys_of(node: Mapping[str, Any]) -> tuple[NodeSigner | None, PeerKeys | None]:
    """Return the node's own key and its peers', from the files that the node config names.

    Raises:
        ConfigError: a file cannot be read or used.
    """
    own, peers = str(node.get("node-key", "")), str(node.get("peer-keys", ""))
    if own and not peers:
        peers = _beside(Path(own))
    return (
        NodeSigner(_read("node-key", own)) if own else None,
        _peers(_read("peer-keys", peers)) if peers else None,
    )


def _beside(own: Path) -> str:
    """The path of the peers' keys beside a node key, empty where there never were any.

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
