"""The report as one HTML file that loads nothing."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from server.report.data import Report
from server.watch.reasons import in_words
from zo_common.speech.comparison import change_text

_TEMPLATES = Environment(
    loader=PackageLoader("server.report"),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_RATES = {"wer": "word error rate", "cer": "character error rate", "raw_wer": "WER of the texts as they are"}


def render(report: Report) -> str:
    """Return the page; all texts are escaped."""
    run, found = report.run, report.evaluation
    comparison = found.get("comparison")
    values: dict[str, Any] = {
        "report": report,
        "run": run,
        "verdict": found.get("verdict", ""),
        "comparison": comparison,
        "change": change_text(comparison) if comparison else "",
        "rows": _rates(found),
        "facts": _facts(report),
        "refused": _refused(report),
        "settings": sorted(run.settings.items()),
    }
    return _TEMPLATES.get_template("report.html").render(values)


def _rates(found: Any) -> list[tuple[str, str, str]]:
    before, after = found.get("before") or {}, found.get("after") or {}
    rows = [
        (label, f"{before[key]:.1%}", f"{after[key]:.1%}")
        for key, label in _RATES.items()
        if key in before and key in after
    ]
    if "loss" in before and "loss" in after:
        rows.append(("loss, nats a token or character", f"{before['loss']:.3f}", f"{after['loss']:.3f}"))
    return rows


def _facts(report: Report) -> list[tuple[str, str]]:
    run = report.run
    up, down = (sum((row.get(way) or {}).get("payload", 0) for row in run.rounds) for way in ("up", "down"))
    answered = max((row.get("answered", 0) for row in run.rounds), default=0)
    facts = [
        ("base model", str(run.settings.get("model", "unknown"))),
        ("rounds", str(run.last_round)),
        ("most devices in a round", str(answered)),
        ("payload of all devices", f"{up:,} B up, {down:,} B down"),
        ("ledger", f"{run.ledger_bytes:,} B, head {run.head}"),
        ("checksum of the weights", str(report.evaluation.get("checksum", ""))),
    ]
    if run.epsilon_limit is not None:
        spent = f"ε {run.epsilon_spent or 0:.2f} of {run.epsilon_limit:g} at δ {run.settings.get('target-delta', '')}"
        facts.append(("privacy spent", spent))
    return facts


def _refused(report: Report) -> list[tuple[int, str]]:
    total: dict[str, int] = {}
    for row in report.run.rounds:
        for reason, count in (row.get("refused") or {}).items():
            total[reason] = total.get(reason, 0) + count
    return [(count, in_words(reason)) for reason, count in sorted(total.items(), key=lambda each: -each[1])]
