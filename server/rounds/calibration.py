"""Calibration for `trained-tensors = "auto"`: devices measure groups of tensors; the server chooses before round 1.

The choice is a pattern (`estimator.tensor_choice`), recorded in the ledger's header. Every message carries it, so that
a restarted device trains the same tensors. It is written durably to `<output>/tensors.json` before the ledger exists,
so that a server that is killed in between makes the same choice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.devices.roster import Member
from server.guards.choice import NO_GUARD
from server.messaging.exchange import CALIBRATE, CONTENT, ask, device_error, payload_of
from server.messaging.foreign_text import plain
from server.run.model import GlobalModel
from server.run.state import refuse_used_ledger
from zo_common.binary.durable import write_durably
from zo_common.calibration import measure_share
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import CodecError, ConfigError
from zo_common.estimator.calibration import (
    LEAST_DEVICES,
    LEAST_DIRECTIONS,
    GroupMeasure,
    agreed_measure,
    by_importance,
    passes_of_groups,
    pooled_measures,
    shared_out,
)
from zo_common.estimator.tensor_choice import RoundShape, TensorChoice, choose_tensors
from zo_common.lattice.trained import AUTO, DEFAULT, measured_groups, unique_parameters
from zo_common.ledger.file import read_ledger
from zo_common.speech.recordings import read_speech
from zo_common.speech.splits import server_split
from zo_common.wire.calibration import CalibrationAnswer, CalibrationAsk, decode_answer, encode_ask
from zo_common.wire.plan import Status

logger = logging.getLogger(__name__)
FILE_NAME = "tensors.json"
TENSORS = "tensors"
_STREAM = 1 << 46  # far from any round number
_MOST_DEVICES = 256  # more would add little information
_TTL_SLACK = 900.0


def message_entries(asked: RunConfig, config: RunConfig) -> dict[str, str]:
    """Return the entries of every message: the choice, if the devices' settings leave it open."""
    chosen = asked.trained_tensors == AUTO != config.trained_tensors
    return {TENSORS: config.trained_tensors} if chosen else {}


def known_tensors(config: RunConfig, ledger: Path) -> RunConfig:
    """Return the settings with this run's earlier choice, if there is one, from the ledger or `tensors.json`.

    Raises:
        ConfigError, LedgerError: there is a ledger, but `resume` is off or it cannot be read.
    """
    if config.trained_tensors != AUTO:
        return config
    refuse_used_ledger(config)
    if ledger.exists():
        return replace(config, trained_tensors=read_ledger(ledger).header.pattern)
    try:
        stored = json.loads((Path(config.output) / FILE_NAME).read_text())
        if stored["run"] == _run(config) and isinstance(stored["pattern"], str):
            return replace(config, trained_tensors=stored["pattern"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return config


def calibrate(config: RunConfig, grid: Grid, global_model: GlobalModel | None, members: Sequence[Member]) -> RunConfig:
    """Return the settings with the tensors that a calibration chooses.

    With privacy or secure aggregation devices are not asked: the server measures on its own speech, that of its guard
    (`server_split`). Without such speech, the default preset is trained.

    Raises:
        ConfigError: a round has too few passes, or `<output>/tensors.json` cannot be written.
        DataError: the server's speech cannot be read.
    """
    if _passes(config) < LEAST_DIRECTIONS:
        raise ConfigError(
            f"trained-tensors is 'auto' with {_passes(config)} forward passes of a batch a round, a calibration needs "
            f"{LEAST_DIRECTIONS}: raise num-queries or local-steps, or name the tensors"
        )
    private = config.privacy != "none" or config.secure_aggregation
    if not private:
        measures = _asked_of_devices(config, grid, global_model, members)
    elif global_model is not None and (split := server_split(config)) not in ("", NO_GUARD):
        measures = _measured_here(config, global_model, split)
    else:
        logger.warning(
            f"calibration: devices are not asked in a run with privacy or secure aggregation, and the server has no "
            f"speech (a split dev, or guard-split): {DEFAULT} is trained"
        )
        measures = {}
    devices = min(config.clients_per_round or len(members), len(members))
    apart = 1 if config.directions == "shared" else devices
    shape = RoundShape(config.num_queries * config.local_steps * apart, devices, config.num_server_rounds)
    choice = choose_tensors(measures, shape)
    logger.info(f"calibration: {choice.pattern} is trained: {choice.reason}")
    _keep(config, choice, measures)
    return replace(config, trained_tensors=choice.pattern)


def _passes(config: RunConfig) -> int:
    return config.estimator_config.forwards * config.local_steps


def _asked_of_devices(
    config: RunConfig, grid: Grid, global_model: GlobalModel | None, members: Sequence[Member]
) -> dict[str, GroupMeasure]:
    chosen = sorted(members, key=lambda m: fold_in(config.run_seed, _STREAM, m.client_id))[:_MOST_DEVICES]
    asks = {
        member.node_id: CalibrationAsk(
            fold_in(config.run_seed, _STREAM),
            member.client_id,
            place,
            len(chosen),
            min(65535, _passes(config)),
            config.batch_size,
        )
        for place, member in enumerate(chosen)
    }
    messages = [
        Message(
            RecordDict({CONTENT: ConfigRecord({"calibration": encode_ask(question)})}),
            dst_node_id=node,
            message_type=CALIBRATE,
            ttl=config.round_timeout + _TTL_SLACK,
        )
        for node, question in asks.items()
    ]
    answers = _Answers(asks, global_model)
    for message in ask(grid, messages, config.round_timeout):
        answers.take(message)
    return answers.agreed()


class _Answers:
    """Collects and checks devices' answers, and combines the numbers of each group."""

    def __init__(self, asks: Mapping[int, CalibrationAsk], global_model: GlobalModel | None) -> None:
        self._asks = asks
        self._groups = measured_groups(global_model.model) if global_model is not None else None
        self._parameters = unique_parameters(global_model.model) if global_model is not None else {}
        self._found: dict[str, list[GroupMeasure]] = {}
        self._answered = 0

    def take(self, message: Message) -> None:
        """Process one device's answer."""
        question = self._asks.get(message.metadata.src_node_id)
        if question is None:
            return
        try:
            if message.has_error():
                raise CodecError(plain(str(message.error.reason)))
            if problem := device_error(message):
                raise CodecError(problem)
            self._accept(question, decode_answer(payload_of(message)))
        except CodecError as error:
            logger.warning(f"calibration: device {question.client_id} is not counted: {error}")

    def _accept(self, question: CalibrationAsk, answer: CalibrationAnswer) -> None:
        if answer.status is not Status.OK:
            raise CodecError(plain(answer.message) or answer.status.name)
        if (answer.seed, answer.client_id) != (question.seed, question.client_id):
            raise CodecError("it answers another question than it was asked")
        _, each = passes_of_groups(question.passes)
        if len(answer.measures) > each:
            raise CodecError(f"it answers for {len(answer.measures)} groups, expected at most {each}")
        if self._groups is not None:
            share = shared_out(by_importance(self._groups), question.devices, each)[question.place]
            sizes = {group: sum(self._parameters[n].numel() for n in self._groups[group]) for group in share}
            if any(sizes.get(group) != m.weights for group, m in answer.measures.items()):
                raise CodecError("it answers for groups that it was not asked for")
        self._answered += 1
        for group, measure in answer.measures.items():
            self._found.setdefault(group, []).append(measure)

    def agreed(self) -> dict[str, GroupMeasure]:
        """Return the combined measures of groups that enough devices measured: three, or all if there are fewer."""
        least = min(LEAST_DEVICES, len(self._asks))
        return {group: agreed_measure(found) for group, found in self._found.items() if len(found) >= least}


def _measured_here(config: RunConfig, global_model: GlobalModel, split: str) -> dict[str, GroupMeasure]:
    """Measure on the server's own speech, simulating `LEAST_DEVICES` devices for each group."""
    data = read_speech(
        config.data,
        global_model.speech.reader(**config.reading),
        split=split,
        text_column=config.text_column,
        skip_bad=config.skip_bad,
    )
    groups = len(measured_groups(global_model.model))
    _, each = passes_of_groups(_passes(config))
    devices = -(-groups // each) * LEAST_DEVICES
    found: dict[str, list[GroupMeasure]] = {}
    for place in range(devices):
        question = CalibrationAsk(
            fold_in(config.run_seed, _STREAM), place, place, devices, _passes(config), config.batch_size
        )
        for group, measure in measure_share(global_model.speech, config, data, question).items():
            found.setdefault(group, []).append(measure)
    return {group: pooled_measures(measures) for group, measures in found.items()}


def _run(config: RunConfig) -> dict[str, Any]:
    """Return the settings that identify a run."""
    return {"model": config.model, "run-seed": config.run_seed, "scale": config.scale, "data": config.data}


def _keep(config: RunConfig, choice: TensorChoice, measures: Mapping[str, GroupMeasure]) -> None:
    path = Path(config.output) / FILE_NAME
    row = {"run": _run(config), **asdict(choice), "groups": {group: asdict(m) for group, m in measures.items()}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, (json.dumps(row, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): name another output") from None
