"""Draw `docs/dialect.png` from `benchmarks/results/dialect.json`: held-out loss and WER over bytes, every seed."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.rows import RESULTS

FIGURE = Path(__file__).parent.parent.parent / "docs" / "dialect.png"
DEVICES = 8


def main() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    row = json.loads((RESULTS / "dialect.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for seed, points in zip(row["seeds"], row["curves"], strict=True):
        whole = points[-1]["utterances"]  # only points measured on the whole split compare
        curve = [point for point in points if point.get("loss_utterances", point.get("utterances")) == whole]
        sent = [point["payload"]["up"] / DEVICES for point in curve]
        left.plot(sent, [point["loss"] for point in curve], marker="o", label=f"seed {seed}")
        ends = [curve[0], curve[-1]]
        right.plot([sent[0], sent[-1]], [100 * point["wer"] for point in ends], marker="o", label=f"seed {seed}")
    left.set(ylabel="loss (nats a token)", xlabel="bytes a device has sent")
    right.set(ylabel="WER, 30 s window (%)", xlabel="bytes a device has sent", ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("Whisper-tiny.en, speakers and sentences that no device trained on")
    figure.savefig(FIGURE, dpi=90)


if __name__ == "__main__":
    main()
