"""Flower ClientApp: a thin adapter from messages to the warm engine."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.warm import warm_dataset, warm_engine
from zo_common.config import RunConfig
from zo_common.errors import DataError, ZOError
from zo_common.evaluation_reply import EvaluationReply, encode_evaluation
from zo_common.messages import Plan, Reply, Status, decode_plan, encode_reply
from zo_common.seeds import fold_in

CONTENT = "zo"
_DROP_STREAM = 1 << 41


def make_client_app(config: RunConfig | None = None) -> ClientApp:
    """A ClientApp; without `config` it takes `context.run_config`, as `flwr run` gives it."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        return _answer(message, "hello", _hello(config or RunConfig.from_mapping(context.run_config), context))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        settings = config or RunConfig.from_mapping(context.run_config)
        plan = decode_plan(bytes(message.content.config_records[CONTENT]["plan"]))  # type: ignore[arg-type]
        return _answer(message, "reply", encode_reply(_train(settings, plan, context)))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        settings = config or RunConfig.from_mapping(context.run_config)
        plan = decode_plan(bytes(message.content.config_records[CONTENT]["plan"]))  # type: ignore[arg-type]
        return _answer(message, "reply", encode_evaluation(_evaluate(settings, plan, context)))

    return app


def _answer(message: Message, key: str, payload: bytes) -> Message:
    return Message(RecordDict({CONTENT: ConfigRecord({key: payload})}), reply_to=message)


def _place(context: Context) -> tuple[int | None, int]:
    """This device's partition and how many there are; a device with its own data has none."""
    node = context.node_config
    if "partition-id" not in node or "num-partitions" not in node or node.get("own-data"):
        return None, 1
    return int(node["partition-id"]), int(node["num-partitions"])


def client_id(context: Context) -> int:
    """`client-id` of the node config, else its partition, else Flower's node id."""
    node = context.node_config
    return int(node.get("client-id", node.get("partition-id", context.node_id)))


def _hello(config: RunConfig, context: Context) -> bytes:
    """Who this device is and what it holds; for a user error, the sentence to show the operator."""
    try:
        engine = warm_engine(_local(config, context))
        data = warm_dataset(_local(config, context), engine, *_place(context))
        word = {"client_id": client_id(context), "num_examples": len(data), "skipped": len(data.skipped)}
        return json.dumps(word | engine.describe()).encode()
    except ZOError as error:
        # in a simulation all devices' speech is the user's own: bad recordings stop the run before it starts
        stop = isinstance(error, DataError) and _place(context)[0] is not None
        return json.dumps({"client_id": client_id(context), "error": str(error), "stop": stop}).encode()


def _local(config: RunConfig, context: Context) -> RunConfig:
    """A device may name its own model and data in its node config."""
    own = {k: v for k, v in context.node_config.items() if k in ("model", "data")}
    return RunConfig.from_mapping(config.to_mapping() | own) if own else config


def _train(config: RunConfig, plan: Plan, context: Context) -> Reply:
    if _drops_out(config, plan):
        raise ConnectionError("dropped out, as the scenario asks")
    try:
        config = _local(config, context)
        engine = warm_engine(config)
        return engine.train(plan, warm_dataset(config, engine, *_place(context)))
    except ZOError as error:
        return Reply(Status.ERROR, plan.server_round, 0, plan.client_id, plan.seed, 0, message=str(error))


def _evaluate(config: RunConfig, plan: Plan, context: Context) -> EvaluationReply:
    try:
        config = _local(config, context)
        engine = warm_engine(config)
        # held-out speakers are others than the train split's: shares are dealt out in turn
        held_out = replace(config, train_split=config.eval_split, partition_by="round-robin")
        return engine.evaluate(plan, warm_dataset(held_out, engine, *_place(context)))
    except ZOError as error:
        return EvaluationReply(Status.ERROR, plan.server_round, 0, plan.client_id, 0, message=str(error))


def _drops_out(config: RunConfig, plan: Plan) -> bool:
    draw = random.Random(fold_in(config.run_seed, _DROP_STREAM, plan.server_round, plan.client_id)).random()
    return draw < config.drop_out


app = make_client_app()
