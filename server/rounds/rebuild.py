"""Devices with wrong weights rebuild them from their base model."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.devices.device_status import DeviceStatuses
from server.messaging.exchange import CONTENT, REBUILD, ask, is_ok
from zo_common.wire.plan import Plan, encode_plan

_REBUILD_SECONDS = 120.0
_TTL_SLACK = 900.0


def rebuild(
    grid: Grid, timeout: float, statuses: DeviceStatuses, plans: Mapping[int, Plan], also: Mapping[str, str]
) -> None:
    """Ask nodes to rebuild their weights, and record who did.

    Args:
        timeout: seconds, at most, to wait for them.
        plans: by node, without records.
        also: further entries of every message (`server.rounds.calibration.message_entries`).
    """
    messages = []
    for node, plan in plans.items():
        content = RecordDict({CONTENT: ConfigRecord({"plan": encode_plan(plan), **also})})
        messages.append(Message(content, dst_node_id=node, message_type=REBUILD, ttl=_REBUILD_SECONDS + _TTL_SLACK))
    for answer in ask(grid, messages, min(_REBUILD_SECONDS, timeout)):
        asked = plans.get(answer.metadata.src_node_id)
        if asked is not None and is_ok(answer) == 0:
            statuses.rebuilt(asked.client_id)
