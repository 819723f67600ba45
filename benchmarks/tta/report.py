"""Tables of the comparison and of the study for the docs, and their figure: `python -m benchmarks.tta.report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

from benchmarks.harness.rows import RESULTS, amount, spread
from benchmarks.tta.comparison import FEDERATED, METHODS
from benchmarks.tta.studies import STUDIES

FIGURE = RESULTS.parent.parent / "docs" / "tta.png"
_NAMES = {
    "source": "no adaptation",
    "zo-episodic": "ZO, episodic",
    "zo-continual": "ZO, continual",
    "zo-federated": "ZO, federated",
    "adam-episodic": "Adam, episodic",
}


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _lines(model: str) -> list[dict[str, Any]]:
    return [line for line in _load("tta")["lines"] if line["model"] == model]


def errors(model: str) -> str:
    """Return word error rates by method and condition."""
    lines = _lines(model)
    shown = [m for m in METHODS if any(m in line for line in lines)]
    head = "| WER, % | " + " | ".join(_NAMES[m] for m in shown) + " |"
    rows = [head, "|---" * (len(shown) + 1) + "|"]
    for line in lines:
        cells = [_wer(line[m]["wer"]) if m in line else "not measured" for m in shown]
        rows.append(f"| {line['condition']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def changes(model: str) -> str:
    """Return word error rates less the base model's on the same utterances: mean and spread."""
    lines = _lines(model)
    shown = [m for m in METHODS if m != "source" and any(m in line for line in lines)]
    rows = ["| change, points | " + " | ".join(_NAMES[m] for m in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for line in lines:
        cells = [_change(line[m]["wer"], line["source"]["wer"]) if m in line else "not measured" for m in shown]
        rows.append(f"| {line['condition']} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _change(adapted: dict[str, Any], base: dict[str, Any]) -> str:
    """Return the change over pairs, as a seed's utterances are the same for all methods."""
    numbers = spread([after - before for after, before in zip(adapted["values"], base["values"], strict=True)])
    return f"{100 * numbers['mean']:+.1f} ± {100 * numbers['std']:.1f}"


def _wer(numbers: dict[str, Any]) -> str:
    return f"{100 * numbers['mean']:.1f} ± {100 * numbers['std']:.1f}"


def target(model: str) -> str:
    """Return mean error rates over the noisy sets, and how both methods change them."""
    noisy = [line for line in _lines(model) if line["condition"] in _load("tta")["noisy"]]
    if not noisy:
        return "Not measured yet on the noisy sets."
    base, zo, adam = (
        100 * sum(float(line[m]["wer"]["mean"]) for line in noisy) / len(noisy)
        for m in ("source", "zo-episodic", "adam-episodic")
    )
    sets = " and ".join(line["condition"] for line in noisy)
    return (
        f"Mean over {sets}: {base:.1f} % without adaptation; Adam changes it by {adam - base:+.1f} points, "
        f"ZO (episodic) by {zo - base:+.1f}."
    )


def costs(model: str) -> str:
    """Return what each method costs an utterance; means over conditions."""
    row = _load("tta")
    lines = _lines(model)
    memory = row["memory"][model]["over_inference"]
    zo, adam = (f"{memory[name]:.2f}" for name in ("zo", "adam"))
    ratios = {"source": "1.00", "zo-episodic": zo, "zo-continual": zo, FEDERATED: "", "adam-episodic": adam}
    rows = [
        "| an utterance | forwards | of them backwards | time ÷ transcribing | peak memory ÷ transcribing | stored |",
        "|---" * 6 + "|",
    ]
    for method in (m for m in METHODS if any(m in line for line in lines)):
        mean = {k: _mean(lines, method, k) for k in ("forwards", "backwards", "stored")}
        times = [line[method]["seconds_over_source"]["mean"] for line in lines if method in line]
        rows.append(
            f"| {_NAMES[method]} | {mean['forwards']:.0f} | {mean['backwards']:.0f} | "
            f"{'' if method == FEDERATED else f'{fmean(times):,.0f}'} | "
            f"{ratios[method]} | {amount(mean['stored'], 'B')} |"
        )
    return "\n".join(rows)


def _mean(lines: list[dict[str, Any]], method: str, key: str) -> float:
    return fmean(float(line[method][key]) for line in lines if method in line)


def seeds() -> str:
    """Return what the numbers are over."""
    row = _load("tta")
    counts = " and ".join(f"{row['settings'][m]['utterances']} utterances ({m})" for m in row["settings"])
    over = f"Mean ± standard deviation over {len(row['seeds'])} seeds"
    return f"{over}, each with its own {counts} of every kind of speech."


def study(name: str) -> str:
    """Return the trials of a study: one line a combination, errors after each number of steps."""
    rows = _load("tta_study")["studies"][name]
    keys = ("method", "condition", "tensors", "scale", "objective", "layout", "learning_rate", "epsilon", "queries")
    varied = [key for key in keys if len({str(row[key]) for row in rows}) > 1]
    marks = sorted({mark for row in rows for mark in row["wer"]}, key=int)
    head = "| " + " | ".join(key.replace("_", " ") for key in varied) + " | "
    out = [
        head + " | ".join("base" if mark == "0" else f"{mark} steps" for mark in marks) + " |",
        "|---" * (len(varied) + len(marks)) + "|",
    ]
    for row in sorted(rows, key=lambda r: [_ordered(r[key]) for key in varied]):
        cells = [_plain(row[key]) for key in varied]
        cells += [f"{100 * row['wer'][mark]:.1f}" if mark in row["wer"] else "" for mark in marks]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def _ordered(value: Any) -> tuple[bool, Any]:
    return (isinstance(value, str), value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "default"


def draw() -> None:
    """Draw word error rate over steps, a curve for each number of queries and for first order, a panel a model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    studies = _load("tta_study")["studies"]
    shown = [studies[name] for name in ("curve-ctc", "curve-whisper") if name in studies]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.4), constrained_layout=True, squeeze=False)
    for axis, rows in zip(axes[0], shown, strict=True):
        for row in sorted(rows, key=lambda r: (r["method"], r["queries"])):
            points = sorted((int(mark), 100 * wer) for mark, wer in row["wer"].items())
            label = "Adam" if row["method"] == "adam" else f"ZO, {row['queries']} queries"
            style = "k--" if row["method"] == "adam" else "o-"
            axis.plot([p[0] for p in points], [p[1] for p in points], style, markersize=3, label=label)
        axis.set(title=f"{rows[0]['model']}, {rows[0]['condition']}", xlabel="steps", ylabel="WER (%)", ylim=(0, None))
        axis.set_xscale("symlog", linthresh=5)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(FIGURE, dpi=90)


def _measured(row: str, part: str, name: str, make: Callable[[], str]) -> Callable[[], str]:
    """Return the text, or that there is none yet: where a row's `part` has no `name`."""

    def text() -> str:
        known = (RESULTS / f"{row}.json").exists() and name in _load(row)[part]
        return make() if known else "Not measured yet."

    return text


def _tables() -> dict[str, Callable[[], str]]:
    found = {"seeds": _measured("tta", "settings", "wav2vec2-tiny-us", seeds)}
    for model, short in (("wav2vec2-tiny-us", "ctc"), ("whisper-tiny.en", "whisper")):
        for kind, make in (("errors", errors), ("changes", changes), ("target", target), ("costs", costs)):
            found[f"{kind}-{short}"] = _measured("tta", "settings", model, partial(make, model))
    return found | {f"study-{name}": _measured("tta_study", "studies", name, partial(study, name)) for name in STUDIES}


BLOCKS = _tables()


if __name__ == "__main__":
    draw()
