"""State of the live page of a run, as small JSON tables, and its changes between two looks."""

from __future__ import annotations

import json
import math
from typing import Any

from server.watch.reasons import in_words
from server.watch.run_folder import RunNow

ROUND_COLUMNS = ("server_round", "loss", "answered", "asked", "up", "down", "seconds", "learning_rate")
CURVE_COLUMNS = ("server_round", "loss", "wer", "cer")
State = dict[str, Any]
_LONGEST = 300  # characters of a device's last message


def state_of(run: RunNow, log: tuple[int, list[str]], resume: str = "") -> State:
    """Return all that the page shows; numbers that are not finite are null, as JSON has them.

    Args:
        log: lines before the log's tail, and the tail.
        resume: the command that continues the run; empty if unknown.
    """
    refused = {reason for row in run.rounds for reason in row.get("refused") or ()}
    refused |= {reason for row in run.devices for reason in row.get("refused") or ()}
    return {
        "run": _summary(run, resume),
        "rounds": [_round(row) for row in run.rounds],
        "curve": [[_number(row.get(key)) for key in CURVE_COLUMNS] for row in run.curve],
        "checks": [[row["server_round"], _number(row.get("loss")), bool(row.get("good", True))] for row in run.checks],
        "devices": {str(row.get("client_id", "")): _device(row) for row in run.devices},
        "log": log,
        "reasons": {reason: in_words(reason) for reason in sorted(refused)},
    }


def _summary(run: RunNow, resume: str) -> State:
    last = run.rounds[-1] if run.rounds else {}
    privacy = None
    if run.epsilon_limit is not None:
        delta = run.settings.get("target-delta")
        privacy = {"spent": _number(run.epsilon_spent), "limit": _number(run.epsilon_limit), "delta": _number(delta)}
    return {
        "name": run.name,
        "status": run.status,
        "round": run.last_round,
        "target": run.target_rounds,
        "model": str(run.settings.get("model", "")),
        "changed": run.changed,
        "verdict": run.verdict,
        "metric": "cer" if any(row.get("headline") == "cer" for row in run.curve) else "wer",
        "ledger": {"bytes": run.ledger_bytes, "head": run.head, "checksum": str(last.get("checksum", ""))},
        "privacy": privacy,
        "resume": resume,
    }


def _round(row: dict[str, Any]) -> list[Any]:
    values = {**row, "up": (row.get("up") or {}).get("payload"), "down": (row.get("down") or {}).get("payload")}
    closing = str(row.get("closing", ""))
    return [*(_number(values.get(key)) for key in ROUND_COLUMNS), row.get("refused") or {}, closing]


def _device(row: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return what changes in every round, and what seldom does."""
    moving = [row.get(key, 0) for key in ("last_seen_round", "have_round", "payload_up", "payload_down")]
    scalars = row.get("scalars")
    suspected = str(scalars.get("report", "")) if isinstance(scalars, dict) else ""
    message = "; ".join(filter(None, (str(row.get("word", "")), suspected)))[:_LONGEST]
    seldom = [
        str(row.get("name", "")),
        str(row.get("standing", "")),
        row.get("until_round", 0),
        row.get("refused", {}),
        message,
    ]
    return moving, seldom  # fmt: skip


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def change(before: State | None, after: State) -> State:
    """Return the difference of two states: rows from the first that differs, devices that differ, the summary whole.

    From nothing (None), this is the whole state.
    """
    old = before or {"rounds": [], "curve": [], "checks": [], "devices": {}, "log": (0, []), "reasons": {}}
    moving, seldom = [], {}
    for client, (moves, keeps) in after["devices"].items():
        was = old["devices"].get(client, (None, None))
        if moves != was[0]:
            moving.append([client, *moves])
        if keeps != was[1]:
            seldom[client] = keeps
    gone = [client for client in old["devices"] if client not in after["devices"]]
    return {
        "run": after["run"],
        **{key: _from(old[key], after[key]) for key in ("rounds", "curve", "checks")},
        "devices": {"moving": moving, "seldom": seldom, "gone": gone},
        "log": _added(old["log"], after["log"]),
        "reasons": {key: reason for key, reason in after["reasons"].items() if key not in old["reasons"]},
    }


def _from(old: list[Any], new: list[Any]) -> State:
    """Return the new rows from the first that differs: rows are appended, or cut and appended."""
    same = min(len(old), len(new))
    while same and old[same - 1] != new[same - 1]:
        same -= 1
    return {"from": same, "rows": new[same:]}


def _added(old: tuple[int, list[str]], new: tuple[int, list[str]]) -> list[str]:
    """Return the lines after the old tail's last one."""
    start = old[0] + len(old[1]) - new[0]
    return new[1][max(0, start) :]


def encoded(state: State) -> str:
    """Return one line of JSON, compact; characters beyond ASCII stay as they are, unless they are no valid text."""
    found = json.dumps(state, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return found.encode(errors="backslashreplace").decode()
