"""Table for the docs: what a secure sum costs, before and after it was made to hold against a server that lies."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.harness.rows import RESULTS

BEFORE, NOW = "secure_aggregation_before", "secure_aggregation"


def _costs(name: str) -> dict[tuple[int, int], dict[str, Any]]:
    found = json.loads((RESULTS / f"{name}.json").read_text())["costs"]
    return {(cost["devices"], cost["neighbours"]): cost for cost in found}


def table() -> str:
    """Return bytes and CPU seconds of one device, and those of the server, in one round."""
    before, now = _costs(BEFORE), _costs(NOW)
    lines = [
        "| devices | each masks with | up, a device | down, a device | CPU of a device | CPU of the server |",
        "|---" * 6 + "|",
    ]
    for (devices, neighbours), cost in now.items():
        old = before[devices, neighbours]
        sizes = (f"{old[way]:,} → {cost[way]:,} B" for way in ("up", "down"))
        seconds = (f"{old[who]:.2g} → {cost[who]:.2g} s" for who in ("device_seconds", "server_seconds"))
        lines.append(f"| {devices:,} | {neighbours or 'all'} | " + " | ".join([*sizes, *seconds]) + " |")
    return "\n".join(lines)
