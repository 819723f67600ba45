"""Plots of a run with matplotlib: held-out loss and error rate over the bytes that were sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from server.report.data import Interval, band_of


def can_plot(console: Console) -> bool:
    """Return whether matplotlib is installed; without it a line says that there is no picture."""
    if find_spec("matplotlib") is None:
        console.print("no curve.png: it needs matplotlib, which is not installed: pip install matplotlib")
        return False
    return True


def plot_curve(
    curve: Sequence[Mapping[str, Any]],
    path: Path,
    title: str,
    devices: int,
    unit: str = "token",
    intervals: tuple[Interval, Interval] | None = None,
) -> Path:
    """Draw two panels over the payload a device has sent up: held-out loss, and the error rate where it was decoded.

    Args:
        curve: rows of `evaluation.json`.
        unit: unit of the loss, e.g. "token"; "character" for CTC models.
        intervals: of the error rate at the first and the last evaluation of the whole split, for rows without any.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    sent = [row["payload"]["up"] / devices for row in curve]
    left.plot(sent, [row["loss"] for row in curve], marker="o", color="tab:blue")
    left.set(xlabel="payload sent up by a device (bytes)", ylabel=f"held-out loss (nats a {unit})")
    # rounds in between decode a subset: only points on the whole split are comparable
    whole = max(row.get("utterances", 0) for row in curve)
    rate = next((row["headline"] for row in curve if "headline" in row), "wer")
    decoded = [(s, row) for s, row in zip(sent, curve, strict=True) if rate in row and row["utterances"] == whole]
    partial = [(s, row) for s, row in zip(sent, curve, strict=True) if rate in row and row["utterances"] != whole]
    for points, label, style in (
        (decoded, f"all {whole} utterances", {"marker": "o", "color": "tab:red"}),
        (partial, "a subset", {"marker": "x", "linestyle": ":", "color": "tab:orange"}),
    ):
        if points:
            right.plot([s for s, _ in points], [100 * r[rate] for _, r in points], label=label, **style)
    if band := band_of([row for _, row in decoded], rate, intervals):
        low, high = ([100 * interval[end] for _, interval in band] for end in (0, 1))
        across = [decoded[place][0] for place, _ in band]
        right.fill_between(across, low, high, color="tab:red", alpha=0.15, linewidth=0, label="95 % interval")
    axis_label = f"held-out {rate.upper()}{', 30 s window' if unit == 'token' else ''} (%)"
    right.set(xlabel="payload sent up by a device (bytes)", ylabel=axis_label, ylim=(0, None))
    if decoded or partial:
        right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
