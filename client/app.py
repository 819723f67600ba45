"""Flower ClientApp: passes messages to the device's resident worker, or to an engine in this process.

Where the node config names a `worker-address` nothing heavy is imported: Flower starts a process for each message.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.device_identity import DeviceIdentity, identity_of, known_identity
from client.error_text import DroppedOut, error_text
from zo_common.console import shown
from zo_common.errors import Refusal, ZOError
from zo_common.paths import home_expanded

if TYPE_CHECKING:
    from client.worker.client import WorkerClient
    from zo_common.config.run import RunConfig

logger = logging.getLogger(__name__)
CONTENT = "zo"
SECONDS_LEFT = "seconds-left"  # of a round, when the message was sent
_OF_THE_WORKER = ("max-epsilon", "least-privacy", "least-noise", "least-weights")
_OF_ITS_SUMS = ("node-key", "peer-keys", "secure-cohort")
TENSORS = "tensors"  # that a calibration chose, with every message of a run with trained-tensors=auto
MOST_PATTERN = 2000
WORKER_WAIT = 120.0  # seconds, unless the node config has `worker-wait`: a restarted worker loads its model first
ROUND_TIMEOUT = 600.0  # seconds, unless the run config has `round-timeout`


def make_client_app(config: RunConfig | None = None) -> ClientApp:
    """Return a ClientApp; without `config` it uses `context.run_config`, as `flwr run` gives it."""
    app = ClientApp()

    def handler(kind: str) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            settings = _spelled(config.to_mapping() if config else context.run_config)
            record = dict(message.content.config_records[CONTENT])
            problem = _leave_time(record, settings, message.metadata.created_at) or _take_tensors(record, settings)
            if problem is not None:
                return Message(RecordDict({CONTENT: ConfigRecord({"error": problem})}), reply_to=message)
            ask = _ask_worker if context.node_config.get("worker-address") else _ask_engine
            try:
                key, payload = _secured(kind, record, settings, context, lambda: ask(kind, record, settings, context))
            except DroppedOut:
                raise
            except Exception as error:  # Flower would send its text
                key, payload = "error", error_text(error, known_identity(context.node_config, context.node_id))
            if key == "hello" and "device-name" in context.node_config:
                payload = json.dumps(json.loads(payload) | {"name": str(context.node_config["device-name"])}).encode()
            return Message(RecordDict({CONTENT: ConfigRecord({key: payload})}), reply_to=message)

        return handle

    app.query()(handler("hello"))
    app.query("sync")(handler("sync"))
    app.query("rebuild")(handler("rebuild"))
    app.query("secure")(handler("secure"))
    app.query("calibrate")(handler("calibrate"))
    app.train()(handler("train"))
    app.evaluate()(handler("evaluate"))
    app.evaluate("look")(handler("look"))
    return app


def _spelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their kebab-case names: `RunConfig` takes both spellings, the checks here look for one."""
    return {key.replace("_", "-"): value for key, value in settings.items()}


def _secured(
    kind: str,
    record: dict[str, Any],
    settings: dict[str, Any],
    context: Context,
    ask: Callable[[], tuple[str, bytes | str]],
) -> tuple[str, bytes | str]:
    """Return the answer of `ask`; with secure aggregation and no worker, masked."""
    if kind == "calibrate" and context.node_config.get("secure-only"):
        return "error", "this device is set to secure-only and was asked to calibrate in the clear: set trained-tensors"
    node = context.node_config
    masked = "node-key" in node or "zo-masked" in context.state.config_records  # directions, earlier
    asks = kind == "secure" or settings.get("secure-aggregation") or node.get("secure-only")
    if not (asks or (kind == "train" and masked)):
        return ask()
    from client import secure_sum as secure

    return secure.answer(kind, record, settings, context, ask)


def _leave_time(record: dict[str, Any], settings: dict[str, Any], created: float) -> str | None:
    """Lower `round-timeout` to the rest of the round; return an error if it has closed, as after a long queue.

    The server's clock stamped the message: if this device's clock is behind, more time seems to be left.
    """
    left = record.get(SECONDS_LEFT)
    if not isinstance(left, int | float):
        return None
    late = max(0.0, time.time() - created)
    if late >= left:
        return f"the round closed {late - left:.0f} s before its message came: it is left out"
    settings["round-timeout"] = min(float(settings.get("round-timeout", ROUND_TIMEOUT)), left - late)
    return None


def _take_tensors(record: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """Replace trained-tensors=auto by a calibration's choice; return an error if that cannot be used."""
    chosen = record.get(TENSORS)
    if chosen is None or settings.get("trained-tensors") != "auto":
        return None
    if not isinstance(chosen, str) or not 0 < len(chosen) <= MOST_PATTERN:
        return f"the server's choice of tensors is no pattern of at most {MOST_PATTERN} characters: update the server"
    settings["trained-tensors"] = chosen
    return None


def _ask_worker(
    kind: str, record: dict[str, Any], settings: dict[str, Any], context: Context
) -> tuple[str, bytes | str]:
    """Return the worker's answer, or the reason why there is none."""
    from client.worker.client import WorkerClient, make_request, read_token

    node = context.node_config
    try:
        sums = kind == "secure" or "secure" in record
        if given := [key for key in _OF_THE_WORKER + _OF_ITS_SUMS * sums if key in node]:
            raise Refusal(f"{given[0]} is in the node config of a device with a worker: give it to zo-asr worker")
        identity = identity_of(node, context.node_id)
        token = read_token(Path(home_expanded(str(node["worker-token-file"])))) if node.get("worker-token-file") else ""
        wait, timeout = float(node.get("worker-wait", WORKER_WAIT)), float(settings.get("round-timeout", ROUND_TIMEOUT))
        with WorkerClient(home_expanded(str(node["worker-address"])), token, wait=wait, timeout=timeout) as worker:
            if kind == "hello":
                return "hello", worker.info(make_request(b"", settings, identity)).hello
            return "reply", _reply_of(worker, kind, record, settings, identity)
    except ZOError as error:
        return "error", error_text(error)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning(f"the message or the node config cannot be used ({error!r})")
        kind = type(error).__name__
        return "error", f"the message or the node config cannot be used ({kind}): update the older side"


def _reply_of(
    worker: WorkerClient, kind: str, record: dict[str, Any], settings: dict[str, Any], identity: DeviceIdentity
) -> bytes:
    """Return the worker's reply to one kind of message."""
    from client.worker.client import make_request
    from client.worker.worker_pb2 import Request

    if kind == "secure":
        return worker.secure(make_request(record["secure"], settings, identity))
    if kind in ("train", "evaluate"):
        request = make_request(record["plan"], settings, identity, secure=record.get("secure", b""))
        reply: bytes = getattr(worker, kind)(request)
        return reply
    if kind in ("look", "rebuild"):
        work, content = (worker.evaluate, Request.LOOK) if kind == "look" else (worker.sync, Request.REBUILD)
        return work(make_request(record["plan"], settings, identity, content))
    content = Request.PART if "part" in record else Request.PLAN
    payload = record.get("part") or record.get("calibration") or record["plan"]
    return worker.sync(make_request(payload, settings, identity, content))


def _ask_engine(kind: str, record: dict[str, Any], settings: dict[str, Any], context: Context) -> tuple[str, bytes]:
    """Return the answer of this process's engine."""
    from client.device import requests as device
    from client.device.calibration import WITH_LIMIT, calibrate
    from client.device.demands import Demands
    from client.device.privacy_account import PrivacyAccount
    from zo_common.config.run import RunConfig
    from zo_common.ledger.snapshot import decode_part
    from zo_common.wire.calibration import CalibrationAnswer, decode_ask, encode_answer
    from zo_common.wire.evaluation import encode_evaluation
    from zo_common.wire.plan import Status, decode_plan, encode_reply

    # a device may name its own model, data and cache; a server must not choose where a real device writes
    own = {k: v for k, v in context.node_config.items() if k in ("model", "data", "feature-cache")}
    if "partition-id" not in context.node_config:
        own.setdefault("feature-cache", "")
    identity = identity_of(context.node_config, context.node_id)
    demands = Demands.of(context.node_config)
    config = RunConfig.from_mapping(settings | own)
    if kind == "hello":
        return "hello", json.dumps(device.hello(config, identity)).encode()
    if kind == "sync" and "part" in record:
        return "reply", encode_reply(device.take_part(config, decode_part(record["part"]), identity=identity))
    if kind == "calibrate":
        ask = decode_ask(record["calibration"])
        limited = "max-epsilon" in context.node_config
        refused = CalibrationAnswer(Status.ERROR, ask.seed, ask.client_id, message=WITH_LIMIT)
        return "reply", encode_answer(refused if limited else calibrate(config, ask, identity, demands=demands))
    plan, node, account = decode_plan(record["plan"]), context.node_config, None
    if "max-epsilon" in node:
        if "privacy-account" not in node:
            raise Refusal("max-epsilon is set without privacy-account: name the file that remembers what was spent")
        path, limit = Path(home_expanded(str(node["privacy-account"]))), float(node["max-epsilon"])
        account = PrivacyAccount(path, limit, float(node.get("max-delta", 1e-6)))
    if kind in ("evaluate", "look"):
        answer = device.check_held_out if kind == "look" else device.evaluate
        return "reply", encode_evaluation(answer(config, plan, identity, account=account, demands=demands))
    if kind == "train":
        return "reply", encode_reply(device.train(config, plan, identity, account=account, demands=demands))
    follow = device.sync if kind == "sync" else device.rebuild
    return "reply", encode_reply(follow(config, plan, identity=identity))


app = make_client_app()


@app.lifespan()
def show_messages(context: Context) -> Iterator[None]:
    """Print log messages while `flwr run` runs this app."""
    with shown(logging.StreamHandler(sys.stdout)):
        yield
