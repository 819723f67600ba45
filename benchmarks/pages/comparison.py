"""The README's table: the base model, this program, and FedAvg with and without LoRA, from committed rows."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from benchmarks.harness.rows import RESULTS
from benchmarks.learning.report import MISSING, Row, load, matched, mean, of
from simulations.reports.report import human_bytes

TASK, MODEL = "wm", "whisper-tiny.en"
# title → (method of the learning rows, name in traffic.json, name in learning_memory.json, label in memory.json)
_METHODS = {
    "this program": ("auto", "ours, K = 1", "default", "ZO step"),
    "FedAvg, all weights (Adam)": ("fedavg-all", "FedAvg", "all", "Adam"),
    "FedAvg, LoRA of rank 8 (Adam)": ("fedavg-lora", "LoRA r = 8", "lora", ""),
}


def comparison_block() -> str:
    """Return word error rate, payload of a round, and memory of a device's step; what has no row yet says so."""
    rows = matched(load(), TASK)
    sent = _row("traffic")["bytes"]
    lines = [
        "| method | WER | sent, a device and round | received | memory of a step |",
        "|---|---|---|---|---|",
        f"| base model | {_before(rows)} | – | – | – |",
    ]
    for title, (method, traffic, step, label) in _METHODS.items():
        wer = mean(row["after"]["wer"] for row in of(rows, TASK, method))
        up, down = (human_bytes(sent[traffic][f"payload_{way}"]) for way in ("up", "down"))
        lines.append(f"| {title} | {wer} | {up} | {down} | {_memory(step, label)} |")
    return "\n".join(lines)


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return row


def _before(rows: list[Row]) -> str:
    found = of(rows, TASK, "auto")
    return f"{fmean(row['before']['wer'] for row in found):.1%}" if found else MISSING


def _memory(step: str, label: str) -> str:
    """Return peak of a step on this model where that is measured, else how many times that of inference."""
    if (RESULTS / "learning_memory.json").exists():
        return human_bytes(_row("learning_memory")["models"][MODEL][step]["peak"])
    wanted = f"memory, {label} ÷ inference, all, batch 8"
    found = [row["median"] for row in _row("memory")["rows"] if row["row"] == wanted]
    return f"{found[0]:.2f} × inference" if found else MISSING
