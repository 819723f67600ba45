"""Secure sums of a device without a worker: the app trains, masks, and keeps the sum in Flower's memory of the run.

Its state is in `context.state`, which Flower keeps on the device from message to message of a run. A device with a
worker has none of this here: the worker masks (`client.worker.runtime`).

Node config, all optional; with a worker, its options:
    node-key: the file of the node's private key; keys are then signed with it, and what was masked is remembered in
        `node.key.masked.seeds` beside it.
    peer-keys: the file of all enrolled devices' public keys; if not set, `peers.keys` beside the node key, where there
        is one. Without it the server is trusted not to swap keys; where it was once and is gone, nothing is answered.
    secure-cohort: the minimum size of a cohort to take part in, 3 if not set.
    secure-only: refuse plans whose replies the server would see alone (set it here with a worker, too).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Context

from client.device.masked_seeds import Seeds, check_bare, check_claim
from client.device.secure_sums import SecureSums
from client.device.sum_keys import SumKeys, seeds_beside, sum_keys
from client.device_identity import identity_of, known_identity
from client.error_text import error_text
from zo_common.errors import Refusal, SecureAggregationError, ZOError
from zo_common.secure_sum.device import Phase, SecureDevice
from zo_common.secure_sum.state import dump_device, load_device
from zo_common.wire.plan import Reply, decode_plan, decode_reply

logger = logging.getLogger(__name__)
KEY = "secure"
_STATE, _SEEDS = "zo-secure", "zo-masked"
_SEED = struct.Struct("<Q16s")
Ask = Callable[[], tuple[str, bytes | str]]
_Value = TypeVar("_Value")


def answer(
    kind: str, record: Mapping[str, Any], settings: Mapping[str, Any], context: Context, ask: Ask
) -> tuple[str, bytes | str]:
    """Answer a message; `ask` returns the plain reply, which the server must not see if it has scalars.

    Returns:
        "reply" and bytes, or "error" and the sentence for the operator.
    """
    try:
        if refuses(kind, settings, context):
            raise Refusal(
                f"this device is set to secure-only and was asked to {kind} in the clear: set "
                "secure-aggregation=true and evaluate-on=server"
            )
        if context.node_config.get("worker-address"):
            return ask()
        if kind == "secure":
            return "reply", _sums(context).step(_message(record), _client_id(context))
        if kind == "train" and settings.get("secure-aggregation"):
            return "reply", _train(record, settings, context, ask)
        if kind == "train":
            _seeds(context).refuse_bare(decode_plan(record["plan"]).seed)
        return ask()
    except ZOError as error:
        return "error", error_text(error, known_identity(context.node_config, context.node_id))
    except (KeyError, TypeError, ValueError) as error:
        if kind != "secure":  # of the model or the recordings, as likely
            raise
        logger.warning(f"a message of the secure sum cannot be used ({error!r})")
        kind = type(error).__name__
        return "error", f"a message of the secure sum cannot be used ({kind}): update the older side"


def refuses(kind: str, settings: Mapping[str, Any], context: Context) -> bool:
    """Return whether the node config forbids to answer this in the clear."""
    clear = kind in ("evaluate", "look") or (kind == "train" and not settings.get("secure-aggregation"))
    return clear and bool(context.node_config.get("secure-only"))


def _client_id(context: Context) -> int:
    return identity_of(context.node_config, context.node_id).client_id


def _message(record: Mapping[str, Any]) -> bytes:
    data = record[KEY]
    if not isinstance(data, bytes):
        raise SecureAggregationError("a message of the secure sum is empty: update the older side")
    return data


def _sums(context: Context) -> SecureSums:
    node = context.node_config
    keys = sum_keys(node)
    trusting = "partition-id" not in node
    limited = "max-epsilon" in node or node.get("least-privacy", "none") != "none"
    store = _InContext(context, keys)
    return SecureSums(lambda: keys, _seeds(context), store, trusting=trusting, limited=limited)


def _seeds(context: Context) -> Seeds:
    return seeds_beside(context.node_config) or _SeedsInContext(context)


def _train(record: Mapping[str, Any], settings: Mapping[str, Any], context: Context, ask: Ask) -> bytes:
    if not isinstance(record.get(KEY), bytes):
        raise SecureAggregationError("a plan came without the list of sharers: its reply would be seen alone")

    def work() -> Reply:
        _, payload = ask()
        assert isinstance(payload, bytes)
        return decode_reply(payload)

    from zo_common.config.run import RunConfig  # imports torch, which a process that only relays does not load

    asked = RunConfig.from_mapping(settings)
    return _sums(context).train(decode_plan(record["plan"]), asked, record[KEY], work)


class _InContext:
    """The device in the present sum, as `context.state` has it; saved after errors too, so that no step is repeated."""

    def __init__(self, context: Context, keys: SumKeys) -> None:
        self._records, self._keys = context.state.config_records, keys

    def find(self, session: bytes) -> SecureDevice | None:
        """Return the device in the present sum, of whichever session: it refuses messages of another."""
        data = _value(self._records, _STATE, "device", bytes)
        return load_device(data, self._keys.signer, self._keys.peers) if data else None

    def last_round(self, run_id: bytes) -> int:
        """Return the last round of this run that is over; the present one may be begun again with another seed."""
        last = _value(self._records, _STATE, "round", int) or 1
        return last - 1 if _value(self._records, _STATE, "run", bytes) == run_id else 0

    def save(self, device: SecureDevice) -> None:
        """Save what the next message needs; the secrets of a finished sum are dropped."""
        data = dump_device(device) if device.phase is not Phase.ENDED else b""
        terms = device.terms
        self._records[_STATE] = ConfigRecord({"run": terms.run_id, "round": terms.server_round, "device": data})


class _SeedsInContext:
    """As `MaskedSeeds`, for a device that keeps nothing on disk: for one Flower run."""

    def __init__(self, context: Context) -> None:
        self._records = context.state.config_records

    def _known(self) -> dict[int, bytes]:
        data = _value(self._records, _SEEDS, "seeds", bytes) or b""
        return dict(_SEED.iter_unpack(data))

    def claim(self, seed: int, part: bytes) -> None:
        """As `MaskedSeeds.claim`."""
        known = self._known()
        check_claim(seed, known.get(seed, part) == part)
        packed = b"".join(_SEED.pack(*each) for each in (known | {seed: part}).items())
        self._records[_SEEDS] = ConfigRecord({"seeds": packed})

    def refuse_bare(self, seed: int) -> None:
        """As `MaskedSeeds.refuse_bare`."""
        check_bare(seed, seed not in self._known())


def _value(records: Mapping[str, ConfigRecord], record: str, name: str, kind: type[_Value]) -> _Value | None:
    found = records[record].get(name) if record in records else None
    return found if isinstance(found, kind) else None
