"""The change of the error rate on held-out speech by adaptation, with its interval, in total and by group.

The same utterances are transcribed before and after, so they are resampled as pairs (Bisani & Ney 2004, "Bootstrap
estimates for confidence intervals in ASR performance evaluation"). If devices evaluate their own speech and send only
sums, whole devices are resampled, as clusters are (Davison & Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zo_common.speech.metrics import headline_metric, normalizer_name, score

CONFIDENCE = 0.95
RESAMPLES = 2000
MOST_GROUPS = 50
_BATCH = 100  # resamples in memory at once
_LEAST = 2  # utterances of an interval, and of a group in the mean

Counts = NDArray[np.int64]
Rows = Sequence[Mapping[str, Any]]
Resampled = Literal["utterances", "devices"]


@dataclass(frozen=True)
class Change:
    """Error rates of some utterances before and after, as shares.

    Attributes:
        units: words or characters of the references.
        interval: of `change` at `CONFIDENCE`; None for fewer than two resampled units.
    """

    utterances: int
    units: int
    before: float
    after: float
    interval: tuple[float, float] | None

    @property
    def change(self) -> float:
        """`after` − `before`: below 0 if errors decreased."""
        return self.after - self.before

    def row(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return asdict(self) | {"change": self.change}


def error_counts(reference: str, hypothesis: str, language: str) -> tuple[int, int]:
    """Return errors of one utterance and units of its reference: words, or characters as the headline metric."""
    found = score([reference], [hypothesis], language=language)
    counts = found.characters if headline_metric(language) == "cer" else found.words
    return counts.errors, counts.length


def change_of(before: Counts, after: Counts, units: Counts, seed: int = 0, *, utterances: int | None = None) -> Change:
    """Return the change of a rate, from each utterance's errors before and after and reference units, (N,) each.

    Args:
        utterances: their number, if the counts are sums over several.
    """
    rates = [_rate(errors, units) for errors in (before, after)]
    interval = _interval(_change, (before, after, units), seed) if len(units) >= _LEAST else None
    return Change(
        len(units) if utterances is None else utterances, int(units.sum()), float(rates[0]), float(rates[1]), interval
    )


def rate_interval(rows: Rows, seed: int = 0) -> tuple[float, float] | None:
    """Return the interval of one evaluation's error rate at `CONFIDENCE`; None for fewer than two resampled units.

    Args:
        rows: with `errors` and `units`, one for each resampled unit: an utterance or a device.
    """
    if len(rows) < _LEAST:
        return None
    return _interval(_rate, [np.array([row[name] for row in rows]) for name in ("errors", "units")], seed)


def rate_intervals(
    references: Sequence[str], hypotheses: Sequence[str], language: str, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the intervals of one evaluation's rates at `CONFIDENCE`, as `wer_interval` and `cer_interval`.

    Args:
        references, hypotheses: of the same utterances; fewer than two have no interval.
    """
    if len(references) < _LEAST:
        return {}
    found = [
        score([reference], [hypothesis], language=language)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    counts = {"wer": [each.words for each in found], "cer": [each.characters for each in found]}
    return {
        f"{name}_interval": _interval(
            _rate, [np.array([each.errors for each in of]), np.array([each.length for each in of])], seed
        )
        for name, of in counts.items()
    }


def _rate(errors: Counts, units: Counts, axis: int = -1) -> Any:
    return errors.sum(axis=axis) / np.maximum(units.sum(axis=axis), 1)


def _change(before: Counts, after: Counts, units: Counts, axis: int = -1) -> Any:
    return _rate(after, units, axis) - _rate(before, units, axis)


def _interval(statistic: Callable[..., Any], columns: Sequence[Counts], seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(columns),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def compare(before: Rows, after: Rows, language: str, speaker: str) -> dict[str, Any] | None:
    """Compare two evaluations of one split, in total and for each group of its columns; the result is for JSON.

    Args:
        before, after: rows with `where`, `columns`, `errors` and `units`, the same utterances in the same order.
        speaker: the column of speakers, which forms groups even if its values are numbers.

    Returns:
        None if they are not the same utterances.
    """
    if not before or [row["where"] for row in before] != [row["where"] for row in after]:
        return None
    first, last, units = _counts(before, after)
    columns = [row["columns"] for row in after]
    groups: dict[str, list[dict[str, Any]]] = {}
    for name in group_columns(columns, speaker):
        values = np.array([str(each.get(name, "")) for each in columns])
        groups[name] = [
            {"value": value, **change_of(*(counts[values == value] for counts in (first, last, units))).row()}
            for value in sorted(set(values.tolist()))
        ]
    return _comparison(change_of(first, last, units), language, "utterances") | {"groups": groups}


def compare_devices(before: Rows, after: Rows, language: str) -> dict[str, Any] | None:
    """As `compare`, for devices' counts on their own speech: those that answered both times, without groups.

    Args:
        before, after: rows with `device`, `utterances`, `errors` and `units`, one a device.

    Returns:
        None if no device has the same utterances in both.
    """
    key = itemgetter("device", "utterances", "units")
    first = {key(row): row for row in before}
    both = [(first[key(row)], row) for row in after if key(row) in first]
    if not both:
        return None
    utterances = sum(row["utterances"] for _, row in both)
    change = change_of(*_counts(*zip(*both, strict=True)), utterances=utterances)
    return _comparison(change, language, "devices") | {"devices": len(both), "groups": {}}


def _counts(before: Rows, after: Rows) -> tuple[Counts, Counts, Counts]:
    """Return errors before and after, and units."""
    wanted = (before, "errors"), (after, "errors"), (after, "units")
    first, last, units = (np.array([row[name] for row in rows]) for rows, name in wanted)
    return first, last, units


def _comparison(change: Change, language: str, resampled: Resampled) -> dict[str, Any]:
    return {
        "metric": headline_metric(language),
        "normalizer": normalizer_name(language),
        **change.row(),
        "confidence": CONFIDENCE,
        "resampled": resampled,
        "method": f"paired bootstrap over {resampled}, percentiles of {RESAMPLES} resamples",
    }


def group_columns(columns: Sequence[Mapping[str, str]], speaker: str) -> list[str]:
    """Return the columns that form groups: 2 … `MOST_GROUPS` values, with two utterances or more on average.

    Columns of numbers, such as votes or durations, form no groups, except numbered speakers.
    """
    names = dict.fromkeys(name for each in columns for name in each)
    found = []
    for name in names:
        values = [str(each.get(name, "")) for each in columns]
        few = 2 <= len(set(values)) <= min(MOST_GROUPS, len(values) // _LEAST)
        if few and (name == speaker or not all(_is_number(value) for value in values)):
            found.append(name)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True


def points(share: float) -> str:
    """Format a difference of rates in percentage points: −7.1."""
    return f"{100 * share:+.1f}".replace("-", "−")


def change_text(found: Mapping[str, Any]) -> str:
    """Return rates and change of a comparison, or of one of its groups, as text."""
    text = f"{found['before']:.1%} → {found['after']:.1%}, {points(found['change'])} points"
    if found["interval"] is not None:
        low, high = found["interval"]
        over = " over devices" if found.get("resampled") == "devices" else ""
        text += f" ({CONFIDENCE:.0%} interval{over} {points(low)} … {points(high)})"
    return text
