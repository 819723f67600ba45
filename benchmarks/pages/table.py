"""All stored results as one table: printed, and written to `benchmarks/results/table.md`.

A result file is in the table with every entry of its list `rows` that has a label `row`
(`benchmarks.harness.rows.row`). Files without such entries show their numbers that have a median or a list of values,
with the targets of `TARGETS`, and the ratios in their rows (`seconds_over_floor`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.rows import RESULTS, amount, row

NOT_MEASURED = "not measured"
# result file → what a reader misses where it is absent; None: nothing
FILES: dict[str, str | None] = {
    "step": "ZO step ÷ its forwards",
    "replay": "replay",
    "kernel": "CPU kernel",
    "memory": "memory of a ZO step ÷ inference",
    "drift": "drift of perturb and restore",
    "drift_cuda": None,
    "traffic": "bytes of a device",
    "forward": "forward passes: precision, kept encoder states, compiled layers",
    "kernel_gpu": "GPU kernel",
    "step_cuda": "ZO step ÷ its forwards, GPU",
    "replay_cuda": None,
    "memory_cuda": "memory of a ZO step ÷ inference, GPU",
    "large_v3_cuda": "Whisper-large-v3: step, memory, replay, GPU",
    "replay_cost": None,
    "simulation": None,
    "tracking": None,
    "thousand": "a thousand devices on Whisper-tiny.en",
}
TARGETS: dict[str, dict[str, Any]] = {
    "one_pass_over_torch_add": {"row": "one pass over the weights ÷ torch add_", "at_most": 2.0},
    "one_pass_over_manual_seed_randn_add": {"row": "one pass ÷ seed + randn + add", "against": "1×"},
    "checksum_over_torch_add": {"row": "state checksum ÷ torch add_"},
    "fused_signs_per_second_per_core": {"row": "fused signs a core", "unit": "/s", "at_least": 2e9},
    "small_tensors_over_one": {"row": "500 small tensors ÷ one of their size", "at_most": 1.0},
    "second_process_start_seconds": {"row": "second process: start to first pass", "unit": "s", "at_most": 1.0},
    "auto_precision_over_float32": {"row": 'forward in the precision of "auto" ÷ in float32', "against": "1×"},
    "cached_encoder_over_computed": {"row": "decoder-ffn step, encoder states kept ÷ computed", "against": "1×"},
    "compiled_over_eager": {"row": "forward with compiled layers ÷ eager", "against": "1×"},
}
THOUSAND_GIB = 24.0  # a small machine's memory
COLUMNS = ("row", "measured (median, range)", "target or against", "met?", "device")


@dataclass(frozen=True)
class Line:
    """One line of the table, as text."""

    row: str
    measured: str
    target: str = ""
    met: str = ""
    device: str = ""


def lines(results: Path) -> list[Line]:
    """Return all lines of a directory of result files."""
    found: list[Line] = []
    for name, missing in FILES.items():
        path = results / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            found += [_line(entry, _device(result)) for entry in _entries(name, result)]
        elif missing:
            found.append(Line(missing, NOT_MEASURED))
    return found


def _entries(name: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the labelled rows of a file, or else what can be found under its keys."""
    if name == "thousand":
        yield from _thousand(result)
        return
    rows = result.get("rows", [])
    if any("row" in entry for entry in rows):
        yield from (entry for entry in rows if "row" in entry)
        return
    for key, value in result.items():
        if isinstance(value, dict) and ("median" in value or "values" in value):
            yield {"row": _words(key), **TARGETS.get(key, {}), **value}
    for entry in rows:
        which, size = next(iter(entry.items()))
        for key, value in entry.items():
            if "_over_" in key:
                yield {"row": f"{_words(name)}, {size} {_words(which)}: {_words(key)}", "median": value}


def _thousand(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a round's time, and the memory of all processes together."""
    what = f"{result['devices']:,} devices on Whisper-tiny.en, {result['asked_a_round']} asked a round"
    yield row(f"{what}: a round", result["seconds_a_round"], unit="s")
    yield row(f"{what}: memory", {"median": result["peak_memory_mib"] / 1024}, unit="GiB", at_most=THOUSAND_GIB)


def _words(key: str) -> str:
    return key.replace("_over_", " ÷ ").replace("_", " ")


def _line(entry: dict[str, Any], device: str) -> Line:
    unit = entry.get("unit", "×")
    value = float(entry["median"] if "median" in entry else statistics.median(entry["values"]))
    text = amount(value, unit)
    if entry.get("min") != entry.get("max"):
        text += f" ({amount(entry['min'], unit)} … {amount(entry['max'], unit)})"
    most, least = entry.get("at_most"), entry.get("at_least")
    target, met = str(entry.get("against", "")), ""
    if most is not None or least is not None:
        reached = (most is None or value <= most) and (least is None or value >= least)
        sides = (("≤", most), ("≥", least))
        target = " ".join(f"{sign} {amount(bound, unit)}" for sign, bound in sides if bound is not None)
        met = "yes" if reached else "missed"
    label = f"{entry['row']} ({entry['of']})" if "of" in entry else str(entry["row"])
    return Line(label, text, target, met, device)


def _device(result: dict[str, Any]) -> str:
    hardware = result.get("hardware", {})
    cores = result.get("threads", hardware.get("cores", "?"))
    return str(hardware.get("gpu") or f"{hardware.get('cpu', 'CPU')}, {cores} core{'' if cores == 1 else 's'}")


def sources(results: Path) -> Iterator[str]:
    """Return which command at which revision made each file."""
    for name in FILES:
        path = results / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            yield f"- `{path.name}`: `{result.get('command', '?')}`, revision {result.get('revision', 'unknown')}"


def markdown(found: list[Line], made_by: Iterator[str]) -> str:
    """Return the table for people who read the repository."""
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in astuple(line)) + " |" for line in found]
    return "\n".join([*head, *body, "", *made_by, ""])


def main() -> None:
    found = lines(RESULTS)
    table = Table(title="what it costs, measured", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for line in found:
        style = {"missed": "red", "yes": "green"}.get(line.met)
        table.add_row(*(f"[{style}]{cell}[/]" if style and cell == line.met else cell for cell in astuple(line)))
    Console().print(table)
    path = RESULTS / "table.md"
    path.write_text(markdown(found, sources(RESULTS)))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
