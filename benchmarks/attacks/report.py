"""Tables of the attacks for docs/results/privacy.md, and its figure: `python -m benchmarks.attacks.report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.harness.rows import RESULTS

FIGURE = RESULTS.parent.parent / "docs" / "privacy.png"
_MEASURED = "Not measured yet: `make attacks`."


def _load(name: str = "privacy") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _name(key: str) -> str:
    """Return a defence in words."""
    kind, _, rest = key.partition("-")
    if kind == "sum":
        return "none, one device's scalars" if rest == "1" else f"the mean of {rest} devices' scalars alone"
    if kind == "example":
        epsilon, _, known = rest.partition("-")
        return f"example-level, ε = {epsilon}" + (", to who knows all other utterances" if known else "")
    epsilon, _, devices = rest.partition("-")
    return f"device-level, ε = {epsilon}, the mean of {devices} devices"


def _auc(found: dict[str, Any]) -> str:
    """Return mean over seeds, the standard deviation, and the mean bounds of the seeds' own intervals."""
    mean, low, high = (found[key]["mean"] for key in ("auc", "low", "high"))
    return f"{mean:.3f} ± {found['auc']['std']:.3f} ({low:.3f} … {high:.3f})"


def membership() -> str:
    """Return AUC by defence: of a step, and of all rounds."""
    row = _load()
    last = row["settings"]["rounds"]
    lines = [
        f"| what the attacker sees | AUC: in this step's batch? | AUC: on the device, after {last} rounds | "
        "members found at 1 % false alarms, step | all rounds | noise multiplier |",
        "|---" * 6 + "|",
    ]
    for key, found in row["membership"].items():
        step, end = found["step"], found["rounds"][-1]
        shares = [f"{each['found_at_1_percent']['mean']:.1%}" for each in (step, end)]
        noise = f"{found['noise_multiplier']['mean']:.2f}" if "noise_multiplier" in found else ""
        lines.append(f"| {_name(key)} | {_auc(step)} | {_auc(end)} | {' | '.join(shares)} | {noise} |")
    return "\n".join(lines)


def setting() -> str:
    """Return what the numbers are of."""
    row = _load()
    s = row["settings"]
    return (
        f"{len(row['seeds'])} seeds, each with {s['pool']} utterances of its own and {s['rounds']} rounds of one step "
        f"with {s['queries']} leave-one-out queries; a device has {s['utterances']} utterances, a step's batch "
        f"{s['batch']}. Guarantees are for all rounds, at δ = {s['delta']:g}, clipped at the usual norm. Model "
        f"`{s['model']}`, tensors `{s['trained_tensors']}`, accent {s['accent']}.\n\n"
        "Mean ± standard deviation over seeds of the AUC; in brackets the mean bounds of each seed's 95 % bootstrap "
        "interval over utterances. 0.5 is chance; of members, 1 % are found at 1 % false alarms by chance."
    )


def guesses() -> str:
    """Return ranks of the true sentence."""
    row = _load()
    rounds, candidates = row["settings"]["rounds"], row["settings"]["candidates"]
    lines = [
        f"| defence | utterances on the device | has the recording: first of {candidates}, 1 round | "
        f"{rounds} rounds | mean rank | has another voice: first, 1 round | {rounds} rounds | mean rank |",
        "|---" * 8 + "|",
    ]
    for key, found in row["transcripts"].items():
        defence, _, size = key.rpartition("-")
        cells = []
        for attacker in ("recording", "voice"):
            cells += [_share(found[attacker][when]["top_1"]) for when in ("first", "all")]
            rank = found[attacker]["all"]["mean_rank"]
            cells.append(f"{rank['mean']:.1f} ± {rank['std']:.1f}")
        lines.append(f"| {'none' if defence == 'none' else _name(defence)} | {size} | {' | '.join(cells)} |")
    chance = row["chance"]
    share, rank = f"{chance['top_1']:.0%}", f"{chance['mean_rank']:.1f}"
    lines.append(f"| by chance | | {share} | {share} | {rank} | {share} | {share} | {rank} |")
    return "\n".join(lines)


def _share(found: dict[str, Any]) -> str:
    return f"{found['mean']:.0%} ± {found['std']:.0%}"


def wire() -> str:
    """Return bytes of messages for two devices that have nothing in common."""
    found = _load("recorder")
    short, long = found["devices"]["short"], found["devices"]["long"]
    lines = [
        f"| message, {found['steps']} step of {found['queries']} queries | device with "
        f"{short['audio_seconds']:.0f} s of speech | device with {long['audio_seconds']:.0f} s |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {size} B | {long['bytes'][name]} B |" for name, size in short["bytes"].items()]
    return "\n".join(lines)


def times() -> str:
    """Return how the time of a reply goes with what was in the batch."""
    found = _load("recorder")["times"]
    parts = []
    for name, label in (("plain", "Ordinary batches"), ("example", "random samples under the example-level guarantee")):
        t = found[name]
        parts.append(
            f"{label}: {t['least_audio']:.1f} … {t['most_audio']:.1f} s of audio took {t['least_seconds']:.2f} … "
            f"{t['most_seconds']:.2f} s of CPU, correlation {t['correlation']:.2f} over {t['replies']:.0f} replies"
        )
    return "; ".join(parts) + "."


def draw() -> None:
    """Draw AUC over rounds, one curve a defence, with the standard deviation over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    row = _load()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, constrained_layout=True)
    known = [key for key in row["membership"] if key.endswith("rest-known")]
    plain = [key for key in row["membership"] if key not in known]
    titles = ("the scalars alone", "knowing all other utterances of the device")
    for axis, keys, title in zip(axes, (plain, known), titles, strict=True):
        for key in keys:
            aucs = [found["auc"] for found in row["membership"][key]["rounds"]]
            rounds, means = range(1, len(aucs) + 1), [a["mean"] for a in aucs]
            axis.plot(rounds, means, "o-", markersize=3, label=_name(key))
            axis.fill_between(
                rounds, [a["mean"] - a["std"] for a in aucs], [a["mean"] + a["std"] for a in aucs], alpha=0.15
            )
        axis.axhline(0.5, color="black", linewidth=0.8, linestyle="--")
        axis.set(title=title, xlabel="rounds seen", ylim=(0.45, 1.0))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("AUC: is this utterance on the device?")
    figure.savefig(FIGURE, dpi=90)
    plt.close(figure)


def _measured(make: Callable[[], str], name: str = "privacy") -> Callable[[], str]:
    """Return the text, or that there is none yet."""
    return lambda: make() if (RESULTS / f"{name}.json").exists() else _MEASURED


BLOCKS = {
    "attack-setting": _measured(setting),
    "membership": _measured(membership),
    "guesses": _measured(guesses),
    "recorder": _measured(wire, "recorder"),
    "recorder-times": _measured(times, "recorder"),
}


if __name__ == "__main__":
    draw()
