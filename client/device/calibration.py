"""A device's part of a calibration: its share of the groups, each measured alone at the base model's weights."""

from __future__ import annotations

from collections.abc import Callable

from client.device.demands import NO_DEMANDS, Demands
from client.device.engine import Engine
from client.device.warm import warm_dataset, warm_engine
from client.device_identity import DeviceIdentity
from client.error_text import error_text
from zo_common.calibration import measure_share
from zo_common.config.run import RunConfig
from zo_common.errors import Refusal, ZOError
from zo_common.wire.calibration import CalibrationAnswer, CalibrationAsk
from zo_common.wire.plan import Status

WITH_LIMIT = (
    "calibration was asked of a device whose owner set max-epsilon, expected no limit: what it measures carries no "
    "noise, name the trained-tensors"
)


def calibrate(
    config: RunConfig,
    ask: CalibrationAsk,
    identity: DeviceIdentity,
    on_synced: Callable[[Engine], None] = lambda engine: None,
    demands: Demands = NO_DEMANDS,
) -> CalibrationAnswer:
    """Answer a calibration's question; a user error becomes an answer with its message.

    The weights are then the base model's: a calibration comes before a run's first round.
    """
    try:
        demands.check_calibration()
        if config.privacy != "none" or config.secure_aggregation:
            raise Refusal(
                "calibration was asked of a device in a run with privacy or secure aggregation, expected none: what it "
                "measures carries no noise and no mask, name the trained-tensors"
            )
        engine = warm_engine(config)
        data = warm_dataset(config, engine, identity.partition_id, identity.num_partitions)
        engine.rewind(0)
        on_synced(engine)
        measures = measure_share(engine.speech, config, data, ask)
        return CalibrationAnswer(Status.OK, ask.seed, ask.client_id, measures)
    except ZOError as error:
        return CalibrationAnswer(Status.ERROR, ask.seed, ask.client_id, message=error_text(error, identity))
