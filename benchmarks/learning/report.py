"""Tables of the measured rows for `docs/results/learning.md`; what is not measured yet is named below them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np

from benchmarks.harness.rows import RESULTS
from benchmarks.learning.learn import passes_to
from benchmarks.learning.methods import ALL, METHODS, STUDIES
from benchmarks.learning.tasks import CTC_TASKS, OTHER_ACCENTS, TASKS, TITLES
from server.run.log import read_rows
from simulations.reports.report import human_bytes
from zo_common.speech.comparison import change_of

MISSING = "not measured yet"
OURS = ("fixed", "fixed-swept", "bias-swept", "auto")
PUBLISHED = ("mezo", "mezo-bias", "zo-asr", "zo-asr-bias", "fzoo", "fzoo-bias")
FEDERATED = ("fedavg-all", "fedavg-lora", "fedavg-bias")
_CENTRAL = ("adam-all", "adam-early", "adam-same")
_GAIN = 0.2  # of the development split's word errors, relative

Row = dict[str, Any]


def load() -> list[Row]:
    """Return rows of runs, of the best learning rate where one was swept; none where nothing was measured."""
    path = RESULTS / "learning.jsonl"
    rows = [row["outcome"] for row in read_rows(path)] if path.exists() else []
    return chosen(swept(distinct(row for row in rows if "method" in row and _is_of_today(row))))


def _is_of_today(row: Row) -> bool:
    """Return whether a row trained the tensors that its method trains now: Whisper's default has changed since some."""
    entry = ALL.get(row["method"])
    return (
        entry is None
        or row["task"] in CTC_TASKS
        or row.get("tensors", entry.settings.tensors) == entry.settings.tensors
    )


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Return one row of each run: the one that also transcribed along the way, where there are two."""
    ordered = sorted(rows, key=lambda row: (row["seed"], bool(row["words"])))
    return list({(_group(row), row["learning_rate"], row["seed"]): row for row in ordered}.values())


def swept(rows: list[Row]) -> list[Row]:
    """Return rows without those of sweeps under way: a rate that was not compared is no method's best."""
    rates: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        rates[_group(row)].add(row["learning_rate"])
    return [r for r in rows if r["method"] not in ALL or rates[_group(r)] >= set(ALL[r["method"]].rates)]


def _group(row: Row) -> str:
    budget = {name: value for name, value in row["budget"].items() if name != "words"}
    return json.dumps([row["task"], row["method"], row["devices"], budget], sort_keys=True)


def chosen(rows: Iterable[Row]) -> list[Row]:
    """Return for each task, method and budget the rate that most seeds ran with, then of the lowest loss."""
    groups: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[_group(row)][row["learning_rate"]].append(row)
    return [row for rates in groups.values() for row in max(rates.values(), key=_rank)]


def _rank(rows: list[Row]) -> tuple[int, float]:
    return len(rows), -fmean(float("inf") if row["ended"] else row["curve"][-1][1] for row in rows)


def of(rows: list[Row], task: str, method: str, *, devices: int | None = None) -> list[Row]:
    """Return rows of a method on a task that were judged; of the largest budget, if there are several.

    Args:
        devices: how many; None: as many as the method has by itself.
    """
    devices = ALL[method].settings.devices if devices is None and method in ALL else devices
    found = [r for r in rows if (r["task"], r["method"], r["devices"]) == (task, method, devices) and r["after"]]
    most = max((r["budget"]["passes"] for r in found), default=0)
    return [r for r in found if r["budget"]["passes"] == most]


def matched(rows: list[Row], task: str) -> list[Row]:
    """Return a task's rows of one budget: the one that most methods ran with, and of several the largest.

    The encoder's biases alone do not decide: they had longer runs than what is compared with them.
    """
    methods: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        if row["task"] == task and row["method"] != "auto-encoder":
            methods[row["budget"]["passes"]].add(row["method"])
    best = max(methods, key=lambda passes: (len(methods[passes]), passes), default=0)
    return [row for row in rows if row["task"] == task and row["budget"]["passes"] == best]


def mean(values: Iterable[float], form: str = ".1%") -> str:
    """Return `32.5% ± 1.2%`; the sample deviation where there are several."""
    known = list(values)
    if not known:
        return MISSING
    deviation = f" ± {stdev(known):{form}}" if len(known) > 1 else ""
    return f"{fmean(known):{form}}{deviation}"


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)])


def measured_table(head: list[str], lines: list[list[str]], missing: list[str]) -> str:
    """Return a Markdown table, and a sentence that names what has no row yet; the sentence alone without rows."""
    sentence = f"{MISSING.capitalize()}: {'; '.join(missing)}." if missing else ""
    return "\n\n".join(part for part in (table(head, lines) if lines else "", sentence) if part)


def tasks_block(rows: Callable[[], list[Row]] = load) -> str:
    """Return every task: word errors and loss before and after, with the defaults and as tuned by hand."""
    head = ["task", "method", "devices", "seeds", "WER before", "WER after", "change in points, 95% interval"]
    head += ["dev loss before", "after", "passes", "minutes", "what the loss check chose"]
    known, lines, missing = rows(), list[list[str]](), list[str]()
    for task in TASKS:
        by_hand = "fixed-ctc" if task in CTC_TASKS else "fixed"
        same = matched(known, task)
        more = () if task in CTC_TASKS else (("auto-encoder", 8),)
        for method, devices in (("auto", 8), *more, (by_hand, 8), ("auto", 1), (by_hand, 1)):
            found = of(known if method == "auto-encoder" else same, task, method, devices=devices)
            start = [TITLES[task], METHODS[method].title, str(devices)]
            if found:
                lines.append([*start, *_task_cells(found)])
            else:
                missing.append(f"{', '.join(start)} device{'s' * (devices > 1)}")
    return measured_table(head, lines, missing)


def _task_cells(found: list[Row]) -> list[str]:
    return [
        str(len(found)),
        mean(r["before"]["wer"] for r in found), mean(r["after"]["wer"] for r in found),
        _sureness(found),
        mean((r["curve"][0][1] for r in found), ".3f"), mean((r["curve"][-1][1] for r in found), ".3f"),
        f"{fmean(r['forwards'] for r in found):,.0f}", mean((r["minutes"] for r in found), ".1f"),
        "; ".join(sorted({_choice(sentence) for r in found for sentence in r["chosen"]})) or "–",
    ]  # fmt: skip


def _sureness(found: list[Row]) -> str:
    """Return the interval of the change of errors, of the same utterances before and after; seeds are added up."""
    if not all(r[when].get("errors") for r in found for when in ("before", "after")):
        return MISSING
    before, after = (np.sum([r[when]["errors"] for r in found], axis=0) for when in ("before", "after"))
    interval = change_of(before, after, np.sum([r["before"]["units"] for r in found], axis=0)).interval
    return " … ".join(f"{100 * end:+.1f}" for end in interval).replace("-", "−") if interval else "–"


def _choice(sentence: str) -> str:
    """Return what a sentence of the loss check chose, without the reasons."""
    clauses = sentence.removeprefix("loss check: ").split("; ")
    return ", ".join(re.split(r":| \(", clause)[0] for clause in clauses)


def published_block(task: str, rows: Callable[[], list[Row]] = load) -> str:
    """Return methods at equal passes: errors, loss, passes to half of the best gain and to a fifth less WER."""
    known = matched(rows(), task)
    head = ["method", "rate", "seeds", "WER after", "dev loss after", "passes to half of the best loss gain"]
    head.append(f"passes to −{_GAIN:.0%} dev WER")
    target = _half_gain(known, task)
    found_of, missing = _split(known, task, (*OURS, *PUBLISHED))
    lines = []
    for method, found in found_of.items():
        half = _reached([passes_to(r["curve"], target) for r in found] if target is not None else [])
        words = [r["words"] for r in found if r["words"]]
        fifth = _reached([passes_to(w, (1 - _GAIN) * w[0][1]) for w in words]) if words else MISSING
        rate = found[0]["learning_rate"]
        lines.append([
            METHODS[method].title, f"{rate:g}" if rate else "measured", str(len(found)),
            mean(r["after"]["wer"] for r in found), mean((r["curve"][-1][1] for r in found), ".3f"), half, fifth,
        ])  # fmt: skip
    return measured_table(head, lines, missing)


def _split(known: list[Row], task: str, methods: Iterable[str]) -> tuple[dict[str, list[Row]], list[str]]:
    """Return the rows of each method that has some, and the titles of the others."""
    found = {method: of(known, task, method) for method in methods}
    return {m: rows for m, rows in found.items() if rows}, [ALL[m].title for m, rows in found.items() if not rows]


def _reached(needed: list[float | None]) -> str:
    reached = [n for n in needed if n is not None]
    return f"{fmean(reached):,.0f}" if reached and len(reached) == len(needed) else "not reached"


def _half_gain(rows: list[Row], task: str) -> float | None:
    ends = [of(rows, task, method) for method in (*OURS, *PUBLISHED)]
    losses = [fmean(r["curve"][-1][1] for r in found) for found in ends if found]
    starts = [r["curve"][0][1] for found in ends for r in found]
    return (fmean(starts) + min(losses)) / 2 if losses else None


def first_order_block(task: str, rows: Callable[[], list[Row]] = load) -> str:
    """Return a table of ours and first order on the same devices and recordings."""
    known = matched(rows(), task)
    head = ["method", "seeds", "WER after", "dev loss after", "rounds", "up a device", "down a device", "minutes"]
    found_of, missing = _split(known, task, ("auto", "bias-swept", *FEDERATED, *_CENTRAL))
    lines = []
    for method, found in found_of.items():
        sent = [
            human_bytes(fmean(r[way] for r in found)) if r["up"] else "–" for r in found[:1] for way in ("up", "down")
        ]
        lines.append([
            METHODS[method].title, str(len(found)), mean(r["after"]["wer"] for r in found),
            mean((r["curve"][-1][1] for r in found), ".3f"), f"{fmean(r['rounds'] for r in found):.0f}", *sent,
            mean((r["minutes"] for r in found), ".1f"),
        ])  # fmt: skip
    return measured_table(head, lines, missing)


def memory_block() -> str:
    """Return peak memory and seconds of one device's step."""
    path = RESULTS / "learning_memory.json"
    if not path.exists():
        return f"Memory of a device's step: {MISSING}."
    models = json.loads(path.read_text())["models"]
    head = [
        "step of a device, 16 utterances of 5 s unless said",
        *(f"{m}, {n}" for m in models for n in ("peak", "seconds")),
    ]
    titles = {
        "zo": "ours, 8 directions",
        "default": "ours, 8 directions, 4 utterances as is the default",
        "all": "Adam, all weights",
        "lora": "Adam, LoRA",
        "bias": "Adam, biases",
    }
    lines = []
    for name in next(iter(models.values())):
        kind, _, thrifty = name.partition("-")
        title = titles[kind] + (", one utterance at a time, layers recomputed" if thrifty else "")
        cells = [c for m in models.values() for c in (human_bytes(m[name]["peak"]), f"{m[name]['seconds']:.1f}")]
        lines.append([title, *cells])
    return table(head, lines)


def forgetting_block(task: str = "wm", rows: Callable[[], list[Row]] = load) -> str:
    """Return word errors of accents that were not trained on."""
    known = [r for r in matched(rows(), task) if r.get("others_after")]
    methods = [*(m for m in OURS if m != "fixed-swept"), "auto-encoder"]
    found = {m: [r for r in known if r["method"] == m] for m in methods}
    lines = []
    for accent in OTHER_ACCENTS:
        pairs = [[[r[f"others_{when}"][accent] for r in of_one] for when in ("before", "after")]
                 for of_one in found.values() if of_one]  # fmt: skip
        lines.append([accent, *(f"{mean(before)} → {mean(after)}" for before, after in pairs)])
    head = ["accent", *(f"{METHODS[m].title}: before → after" for m in methods if found[m])]
    return measured_table(head, lines if known else [], [METHODS[m].title for m in methods if not found[m]])


def study_block(study: str, task: str, rows: Callable[[], list[Row]] = load) -> str:
    """Return a study's entries at equal passes."""
    known = matched(rows(), task)
    base = ["auto"] if study in ("variants", "precision") else []
    found_of, missing = _split(known, task, [*base, *STUDIES[study]])
    lines = []
    for name, found in found_of.items():
        wer, loss = (r["after"]["wer"] for r in found), (r["curve"][-1][1] for r in found)
        lines.append([ALL[name].title, str(len(found)), mean(wer), mean(loss, ".3f")])
    return measured_table(["variant", "seeds", "WER after", "dev loss after"], lines, missing)


def curve_block(task: str = "wm", rows: Callable[[], list[Row]] = load) -> str:
    """Return loss over passes of the longest runs."""
    known = rows()
    lines = []
    for method in ("auto", "bias-swept", "adam-same", "adam-early", "adam-all"):
        for row in of(known, task, method)[:1]:
            points = row["curve"][:: max(1, len(row["curve"]) // 8)]
            lines.append([METHODS[method].title, "; ".join(f"{p:,}: {loss:.3f}" for p, loss in points)])
    return measured_table(["method", "passes: dev loss"], lines, [] if lines else ["curves"])


BLOCKS: dict[str, Callable[[], str]] = {
    "learning-tasks": tasks_block,
    **{f"learning-published-{task}": partial(published_block, task) for task in ("wm", "ru", "ctc-wm")},
    **{f"learning-first-order-{task}": partial(first_order_block, task) for task in ("wm", "ru")},
    "learning-memory": memory_block,
    "learning-forgetting": forgetting_block,
    "learning-curve": curve_block,
    "learning-curve-ru": partial(curve_block, "ru"),
    "learning-tensors": partial(study_block, "tensors", "ctc-wm"),
    **{
        f"learning-{study}{'' if task == 'wm' else '-' + task}": partial(study_block, study, task)
        for study in ("directions", "variants")
        for task in ("wm", "ctc-wm")
    },
}
# docs/precision.md shows it
PRECISION = partial(study_block, "precision", "wm")
