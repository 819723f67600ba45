"""The report of a run: a table and `result.json`, with every number read from the run's files."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from server.rounds.federation import LEDGER_NAME
from server.run.log import INTRODUCTIONS, has_bytes, read_rows, write_json
from simulations.reports.machine import hardware, versions
from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger
from zo_common.speech.comparison import points

_REPLAY_SECONDS = 600
_FAILED = "failed"


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device over the whole run, and those of FedAvg on the same model."""

    up: int
    down: int
    serialised_up: int
    serialised_down: int
    fedavg_each_way: int


def traffic(output: Path, devices: int, model_parameters: int) -> Traffic:
    """Return mean bytes per device, with introductions; FedAvg sends all float32 weights down and up each round."""
    rows = read_rows(output / "rounds.jsonl")
    introductions = output / INTRODUCTIONS
    counted = rows + (list(filter(has_bytes, read_rows(introductions))) if introductions.exists() else [])
    total = {
        (way, kind): sum(row[way][kind] for row in counted)
        for way in ("up", "down")
        for kind in ("payload", "serialised")
    }
    return Traffic(
        up=round(total["up", "payload"] / devices),
        down=round(total["down", "payload"] / devices),
        serialised_up=round(total["up", "serialised"] / devices),
        serialised_down=round(total["down", "serialised"] / devices),
        fedavg_each_way=4 * model_parameters * sum(not row.get("closing") for row in rows),
    )


def replayed_elsewhere(output: Path, model: str, threads: int) -> str:
    """Return the state checksum (hex) that another process computes from base model and ledger, with other threads."""
    command = [
        sys.executable, "-m", "server.commands.ledger", "verify", str(output / LEDGER_NAME), "--model", model,
        "--threads", str(threads), "--json",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_REPLAY_SECONDS)
    except subprocess.TimeoutExpired:  # a busy machine: the run's results do not depend on it
        verify = shlex.join(["zo-asr", "ledger", "verify", str(output / LEDGER_NAME), "--model", model])
        return f"{_FAILED}: no answer within {_REPLAY_SECONDS} s; try again with {verify}"
    if done.returncode:
        return f"{_FAILED}: {(done.stderr or done.stdout).strip()[-200:]}"
    return str(json.loads(done.stdout)["checksum"])


def write_result(output: Path, config: RunConfig, devices: int, numbers: dict[str, Any], command: str) -> None:
    """Write `result.json`: the run, the machine, and the results."""
    ledger = read_ledger(output / LEDGER_NAME)
    result = {
        "command": command,
        "config": config.to_mapping(),
        "devices": devices,
        "fingerprint": ledger.header.fingerprint,
        "trained_weights": sum(_size(t.shape) for t in ledger.header.tensors),
        "versions": versions(),
        "hardware": hardware(),
        "chosen": chosen(read_rows(output / "rounds.jsonl")),
        **numbers,
    }
    write_json(output / "result.json", result)


def chosen(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run's automatic choices: each round's learning rate, and each device's first report on its loss."""
    messages: dict[str, str] = {}
    for row in rows:
        for client, message in row.get("told", {}).items():
            messages.setdefault(client, message)
    rates = [row["learning_rate"] for row in rows if not row.get("closing")]
    return {"learning_rates": rates, "devices": dict(sorted(messages.items()))}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size


def human_bytes(count: float) -> str:
    """Format a number of bytes to three digits: `1.23 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.4g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


_LABELS = {"wer": "WER", "raw_wer": "WER, raw", "cer": "CER", "raw_cer": "CER, raw"}


def _rates(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an evaluation's error rates, the language's headline and then its raw one first."""
    return ("cer", "raw_cer", "wer", "raw_wer") if summary.get("headline") == "cer" else tuple(_LABELS)


def _interval_row(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    label = f"  points of {found['metric'].upper()}"
    if found["interval"] is None:
        return label, "", points(found["change"]), ""
    low, high = (points(end) for end in found["interval"])
    return f"{label}, {found['confidence']:.0%} interval", "", points(found["change"]), f"{low} … {high}"


def group_tables(comparison: Mapping[str, Any] | None) -> list[Table]:
    """Return tables of error rates by group, one for each grouping column of the held-out split."""
    tables = []
    for column, groups in (comparison or {"groups": {}})["groups"].items():
        assert comparison is not None
        title = f"{comparison['metric'].upper()} by {column}, {comparison['normalizer']}"
        table = Table(title=title, title_justify="left")
        for name in (column, "utterances", "before", "after", "points", f"{comparison['confidence']:.0%} interval"):
            table.add_column(Text(name), justify="left" if name == column else "right")
        for group in groups:
            low, high = (points(end) for end in group["interval"] or (0.0, 0.0))
            interval = f"{low} … {high}" if group["interval"] else ""
            value = Text(group["value"] or "not given")  # no markup of rich
            rates = f"{group['before']:.1%}", f"{group['after']:.1%}", points(group["change"])
            table.add_row(value, str(group["utterances"]), *rates, interval)
        tables.append(table)
    return tables


def summary_table(numbers: dict[str, Any], title: str) -> Table:
    """Return the result table of a run; a verdict, if any, is part of the title.

    Args:
        numbers: the numbers that `write_result` stores.
    """
    if verdict := numbers.get("verdict"):
        title = f"{title}: {verdict}"
    table = Table(title=title, title_justify="left")
    for column in ("held out", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "held out" else "right", no_wrap=True)
    before, after = numbers["before"], numbers["after"]
    if before and after:
        if name := after.get("normalizer"):
            table.caption = f"error rates after {name}; raw: of the texts as they are"
            table.caption_justify = "left"
        for key in _rates(after):
            if key not in before or key not in after:  # only the loss was measured
                continue
            change = after[key] / before[key] - 1 if before[key] else 0.0
            table.add_row(_LABELS[key], f"{before[key]:.1%}", f"{after[key]:.1%}", f"{change:+.1%}")
        if found := numbers.get("comparison"):
            table.add_row(*_interval_row(found))
        table.add_row(
            f"loss (nats a {numbers.get('loss_unit', 'token')})", f"{before['loss']:.3f}", f"{after['loss']:.3f}", ""
        )
    sent = numbers["traffic"]
    fedavg = human_bytes(sent["fedavg_each_way"])
    table.add_section()
    table.add_row("payload of a device", "up", "down", "")
    table.add_row("  ours", human_bytes(sent["up"]), human_bytes(sent["down"]), "")
    table.add_row("  FedAvg on this model", fedavg, fedavg, "")
    table.add_section()
    table.add_row("ledger = adapted model", "", human_bytes(numbers["ledger_bytes"]), "")
    agreement = {True: "agree", False: "DIFFER", None: "no model on the server"}[numbers["checksums_agree"]]
    if str(replayed := numbers.get("replayed_checksum")).startswith(_FAILED):
        agreement, table.caption = "NOT REPLAYED", f"the replay {replayed}"
    table.add_row("checksum, live / replayed", agreement, numbers["checksum"] or numbers["replayed_checksum"], "")
    table.add_row("minutes", "", f"{numbers['minutes']:.1f}", "")
    return table
