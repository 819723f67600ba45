"""The device's answers to every kind of message, with the warm engine and the warm recordings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from client.device.checks import check_history, check_seed
from client.device.demands import NO_DEMANDS, Demands
from client.device.engine import Cancelled, Engine
from client.device.privacy_account import PrivacyAccount
from client.device.private_steps import check_demand
from client.device.run_seeds import RunSeeds
from client.device.warm import warm_dataset, warm_engine
from client.device_identity import DeviceIdentity
from client.error_text import DroppedOut, error_text
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import DataError, Refusal, ZOError
from zo_common.ledger.snapshot import SnapshotPart
from zo_common.speech.recordings import Recordings, evenly
from zo_common.speech.splits import DEVELOPMENT, guarded_split
from zo_common.wire.evaluation import EvaluationReply
from zo_common.wire.plan import Plan, Reply, Status

_MOST_PROBLEMS = 1000
_DROP_STREAM = 1 << 41
OnSynced = Callable[[Engine], None]


def _ignore(engine: Engine) -> None:
    pass


def hello(config: RunConfig, identity: DeviceIdentity) -> dict[str, object]:
    """Return the device's introduction: its id, data and model; for a user error, the message for the operator."""
    try:
        engine = warm_engine(config)
        data = _train_data(config, engine, identity)
        introduction = {"client_id": identity.client_id, "num_examples": len(data), "skipped": len(data.skipped)}
        return introduction | engine.describe()
    except ZOError as error:
        refusal: dict[str, object] = {"client_id": identity.client_id, "error": error_text(error, identity)}
        if not (isinstance(error, DataError) and identity.simulated):
            return refusal
        # in a simulation all devices' speech is the user's own: bad recordings stop the run before it starts
        return refusal | {"problems": list(error.problems[:_MOST_PROBLEMS]), "stop": not config.skip_bad}


def train(
    config: RunConfig,
    plan: Plan,
    identity: DeviceIdentity,
    on_step: Callable[[int, float], None] | None = None,
    on_synced: OnSynced = _ignore,
    account: PrivacyAccount | None = None,
    seeds: RunSeeds | None = None,
    demands: Demands = NO_DEMANDS,
) -> Reply:
    """Answer one plan; a user error becomes a reply with its message.

    Args:
        account: the limit of the device's owner; None allows everything.
        seeds: the run-seeds that the device has answered to; None where it keeps nothing on disk.
        demands: what its owner demands.

    Raises:
        Cancelled: by `on_step`.
        DroppedOut: the scenario asks this device to drop out of the round.
    """
    if _drops_out(config, plan):
        raise DroppedOut("dropped out, as the scenario asks")
    try:
        demands.check_plan(config, plan)
        check_demand(config, plan)
        check_seed(config, plan, identity)
        engine = warm_engine(config)
        demands.check_weights(engine.state.num_elements)
        data = _train_data(config, engine, identity)
        if account is not None:
            account.check(plan, len(data))

        def before() -> None:
            check_history(config, engine.applied)
            if seeds is not None:
                seeds.check(config, plan, engine)
            if account is not None:  # whatever becomes of the answer
                account.charge(plan, len(data))

        describe = partial(error_text, identity=identity)
        reply = engine.train(plan, data, on_step, lambda: on_synced(engine), before, describe)
        return replace(reply, one_bit=config.aggregation == "sign-vote")
    except Cancelled:
        raise
    except ZOError as error:
        return _error(plan, error, identity)


def evaluate(
    config: RunConfig,
    plan: Plan,
    identity: DeviceIdentity,
    on_progress: Callable[[int, int], None] | None = None,
    on_synced: OnSynced = _ignore,
    account: PrivacyAccount | None = None,
    demands: Demands = NO_DEMANDS,
) -> EvaluationReply:
    """Decode the held-out recordings at the state before `plan.server_round`; errors of `on_progress` pass through."""

    def ask() -> EvaluationReply:
        demands.check_counts(held_out_settings(config).train_split)
        engine = warm_engine(config)
        demands.check_weights(engine.state.num_elements)
        data = warm_dataset(held_out_settings(config), engine, identity.partition_id, identity.num_partitions)
        return engine.evaluate(plan, data, on_progress, lambda: on_synced(engine))

    return _counted(plan, identity, account, ask)


def check_held_out(
    config: RunConfig,
    plan: Plan,
    identity: DeviceIdentity,
    on_progress: Callable[[int, int], None] | None = None,
    on_synced: OnSynced = _ignore,
    account: PrivacyAccount | None = None,
    demands: Demands = NO_DEMANDS,
) -> EvaluationReply:
    """Return the loss sum of the recordings for the server's guard, at the state before `plan.server_round`.

    At most `guard-utterances` of them, at even distances; nothing is decoded. Errors of `on_progress` pass through.
    """

    def ask() -> EvaluationReply:
        if config.privacy != "none":
            raise Refusal(
                f"this device was asked for a held-out loss in a run with privacy={config.privacy!r}, expected none: "
                "losses carry no noise; set guard-split='none'"
            )
        demands.check_counts(guard_settings(config).train_split)
        engine = warm_engine(config)
        demands.check_weights(engine.state.num_elements)
        data = warm_dataset(guard_settings(config), engine, identity.partition_id, identity.num_partitions)
        some = evenly(data, config.guard_utterances)
        return engine.evaluate(plan, some, on_progress, lambda: on_synced(engine), decode=False)

    return _counted(plan, identity, account, ask)


def _counted(
    plan: Plan, identity: DeviceIdentity, account: PrivacyAccount | None, ask: Callable[[], EvaluationReply]
) -> EvaluationReply:
    """Return the answer of `ask` on held-out recordings if the device's owner allows it; a user error as a reply."""
    try:
        if account is not None:
            account.refuse_counts()
        return ask()
    except Cancelled:
        raise
    except ZOError as error:
        return _no_evaluation(plan, error, identity)


def sync(config: RunConfig, plan: Plan, on_synced: OnSynced = _ignore, identity: DeviceIdentity | None = None) -> Reply:
    """Apply a plan's records without training."""
    try:
        engine = warm_engine(config)
        reply = engine.catch_up(plan)
        on_synced(engine)
        return reply
    except ZOError as error:
        return _error(plan, error, identity)


def take_part(
    config: RunConfig, part: SnapshotPart, on_synced: OnSynced = _ignore, identity: DeviceIdentity | None = None
) -> Reply:
    """Take one part of a snapshot; after the last one the device is at its round."""
    base = Reply(Status.OK, part.server_round, 0, part.client_id, 0, 0)
    try:
        engine = warm_engine(config)
        status = engine.take_part(part)
        on_synced(engine)
        return replace(base, status=status, have_round=engine.have_round, checksum=engine.state.checksum())
    except ZOError as error:
        return replace(base, status=Status.ERROR, message=error_text(error, identity))


def rebuild(
    config: RunConfig, plan: Plan, on_synced: OnSynced = _ignore, identity: DeviceIdentity | None = None
) -> Reply:
    """Read the base model from disk again and forget all rounds."""
    try:
        engine = warm_engine(config)
        engine.rebuild()
        on_synced(engine)
        return Reply(Status.OK, plan.server_round, 0, plan.client_id, plan.seed, engine.base_checksum)
    except ZOError as error:
        return _error(plan, error, identity)


def held_out_settings(config: RunConfig) -> RunConfig:
    """Return settings for held-out recordings: their speakers are dealt out in turn, and errors need a reference."""
    return replace(config, train_split=config.eval_split, partition_by="round-robin", objective="supervised")


def guard_settings(config: RunConfig) -> RunConfig:
    """As `held_out_settings`, for the split that the server's guard evaluates.

    Raises:
        Refusal: there is none.
    """
    if not (split := guarded_split(config)):
        raise Refusal(
            f"this device has no split called {', '.join(DEVELOPMENT)} and eval-split is not set: name a split as "
            "guard-split"
        )
    return held_out_settings(replace(config, eval_split=split))


def _train_data(config: RunConfig, engine: Engine, identity: DeviceIdentity) -> Recordings:
    return warm_dataset(config, engine, identity.partition_id, identity.num_partitions)


def _error(plan: Plan, error: ZOError, identity: DeviceIdentity | None) -> Reply:
    return Reply(Status.ERROR, plan.server_round, 0, plan.client_id, plan.seed, 0, message=error_text(error, identity))


def _no_evaluation(plan: Plan, error: ZOError, identity: DeviceIdentity) -> EvaluationReply:
    return EvaluationReply(Status.ERROR, plan.server_round, 0, plan.client_id, 0, message=error_text(error, identity))


def _drops_out(config: RunConfig, plan: Plan) -> bool:
    draw = random.Random(fold_in(config.run_seed, _DROP_STREAM, plan.server_round, plan.client_id)).random()
    return draw < config.drop_out
