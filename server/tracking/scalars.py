"""Rounds and evaluations as flat tables of named numbers."""

from __future__ import annotations

from typing import Any

from server.run.log import RoundReport
from zo_common.config.run import RunConfig


def round_scalars(report: RoundReport, config: RunConfig) -> dict[str, float]:
    """Return the numbers of a round: bytes are sums of payloads over its devices, seconds are wall time."""
    devices = 1 if config.directions == "shared" else report.answered
    values = {
        "train/loss": report.loss,
        "step/learning_rate": report.learning_rate,
        "step/directions": config.num_queries * config.local_steps * devices if report.answered else 0,
        "step/zero_quanta_share": report.zero_quanta_share,
        "devices/asked": report.asked,
        "devices/answered": report.answered,
        "devices/refused": report.refused.total(),
        "bytes/up": report.up.payload,
        "bytes/down": report.down.payload,
        "bytes/ledger": report.ledger_bytes,
        "time/round_seconds": report.seconds,
        "privacy/epsilon_spent": report.epsilon_spent,
        **{f"refused/{reason}": count for reason, count in report.refused.items()},
        **report.scalars,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def table_scalars(found: dict[str, Any], prefix: str) -> dict[str, float]:
    """Return all numbers of a table and its inner tables; a pair of numbers is an interval, `_low` and `_high`."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        name = f"{prefix}/{key}"
        if isinstance(value, dict):
            numbers |= table_scalars(value, name)
        elif _is_number(value) and key != "server_round":
            numbers[name] = float(value)
        elif isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(each) for each in value):
            numbers |= {f"{name}_low": float(value[0]), f"{name}_high": float(value[1])}
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
