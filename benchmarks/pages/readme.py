"""Fill the numbers of README and docs from the committed rows: `python -m benchmarks.pages.readme` after measurements.

Everything between `<!-- name -->` and `<!-- /name -->` is replaced; `--check` fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.attacks import report as privacy
from benchmarks.cost import install_size, page, serving, startup, switch, tracking
from benchmarks.fleet import soak, wire
from benchmarks.harness.rows import RESULTS
from benchmarks.learning import held_differences
from benchmarks.learning import report as learning
from benchmarks.pages import comparison, secure_sums, table
from benchmarks.pages import privacy as privacy_report
from benchmarks.privacy import accountants
from benchmarks.scale import scaling
from benchmarks.tta import report as tta
from simulations.reports.report import human_bytes

ROOT = Path(__file__).parent.parent.parent


def _row(name: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return row


def _percent(numbers: dict[str, Any]) -> str:
    return f"{numbers['mean']:.1%} ± {numbers['std']:.1%}"


def demo_block() -> str:
    """Return the output of one demo, as it was printed."""
    return _indented(_demo_lines())


def demo_excerpt() -> str:
    """Return the same up to the first table, without messages and all rounds but two; `…` stands for them."""
    lines = _demo_lines()
    end = next(n for n, line in enumerate(lines) if line.startswith("└")) + 1
    rounds = [n for n, line in enumerate(lines) if re.match(r"round \d+/\d+: ", line)]
    head = next(n for n, line in enumerate(lines) if line.startswith("round "))
    return _indented([*lines[:head], "…", lines[rounds[0]], "…", *lines[rounds[-1] : end]])


def _demo_lines() -> list[str]:
    return (RESULTS / "demo.txt").read_text().rstrip().splitlines()


def _indented(lines: list[str]) -> str:
    return "\n".join("    " + line.rstrip() for line in lines)


def seeds_block() -> str:
    """Return WER over seeds."""
    row = _row("dialect")
    lines = [
        f"| {len(row['seeds'])} seeds, mean ± standard deviation | before | after |",
        "|---|---|---|",
        f"| WER, Whisper's English normaliser | {_percent(row['wer_before'])} | {_percent(row['wer_after'])} |",
        f"| WER, raw | {_percent(row['raw_wer_before'])} | {_percent(row['raw_wer_after'])} |",
        f"| CER | {_percent(row['cer_before'])} | {_percent(row['cer_after'])} |",
        "",
        f"Relative change of WER: **{_percent(row['relative_change'])}** "
        f"(worst seed {row['relative_change']['max']:.1%}), "
        f"in {row['minutes']['mean']:.1f} ± {row['minutes']['std']:.1f} minutes on "
        f"{row['hardware']['cores']} CPU cores ({row['hardware']['cpu']}).",
    ]
    return "\n".join(lines)


def cost_block() -> str:
    """Return bytes of a device beside FedAvg's."""
    row = _row("dialect")
    up, down = row["payload_up_per_device"]["mean"], row["payload_down_per_device"]["mean"]
    fedavg = row["fedavg_each_way_per_device"]
    rounds = row["config"]["num-server-rounds"]
    lines = [
        f"| bytes a device, {rounds} rounds of the demo | up | down |",
        "|---|---|---|",
        f"| ours (payload) | {human_bytes(up)} | {human_bytes(down)} |",
        f"| FedAvg, all float32 weights of this model | {human_bytes(fedavg)} | {human_bytes(fedavg)} |",
        f"| FedAvg ÷ ours | {fedavg / up:,.0f} | {fedavg / down:,.0f} |",
        "",
        f"The adapted model is a ledger of {human_bytes(row['ledger_bytes']['mean'])}. "
        "FedAvg's bytes are computed from the model's size; ours are counted at every message: plans, replies, and the "
        "introduction of every device (fingerprint and list of trained tensors, once).",
    ]
    return "\n".join(lines)


def kernel_text() -> str:
    """Return the time of one pass ÷ `torch.add_`."""
    one = _row("kernel")["one_pass_over_torch_add"]
    return f"{one['median']:.2f} × ({one['min']:.2f} … {one['max']:.2f})"


def _window(tail: int) -> dict[str, float]:
    rows: list[dict[str, float]] = _row("window")["rows"]
    return next(row for row in rows if row["tail_tokens"] == tail)


def _labelled(name: str, label: str) -> float:
    """Return the headline number of a row of the comparison."""
    entry = next(entry for entry in _row(name)["rows"] if entry["row"] == label)
    return float(entry["median"])


def _forward(key: str) -> str:
    """Return a ratio of `benchmarks.cost.forward`; a run may have left it out."""
    found = _row("forward").get(key, {})
    return f"{found['median']:.2f}" if "median" in found else "an unmeasured part"


def _full_round() -> str:
    """Return seconds of the largest round of `benchmarks.cost.replay_cost`; a small run leaves it out."""
    full = _row("replay_cost").get("full")
    return f"{full['seconds']:.0f} s" if full else "an unmeasured time"


def startup_text() -> str:
    """Return processor seconds of imports, of a start with its first step, and of one with the loss check."""
    found = _row("startup")["processor_seconds"]
    imports, step, check = (f"{found[name]['mean']:.1f}" for name in startup.KINDS)
    return f"{step} s of processor time, {imports} s of them for imports; with a loss check, {check} s"


BLOCKS = {"demo": demo_excerpt, "comparison": comparison.comparison_block}
COST = {
    "cached-encoder": lambda: _forward("cached_encoder_over_computed"),
    "compiled": lambda: _forward("compiled_over_eager"),
    "step-all": lambda: f"{_labelled('step', 'ZO step ÷ its 16 forwards, all, float32'):.2f}",
    "plain-ffn": lambda: f"{_labelled('step', 'MeZO and ZO-ASR as published ÷ ours, encoder-ffn, float32'):.2f}",
    "plain-all": lambda: f"{_labelled('step', 'MeZO and ZO-ASR as published ÷ ours, all, float32'):.2f}",
    "memory": lambda: f"{_labelled('memory', 'memory, ZO step ÷ inference, all, batch 8'):.2f}",
    "memory-ffn": lambda: f"{_labelled('memory', 'memory, ZO step ÷ inference, encoder-ffn, batch 8'):.2f}",
    "memory-sgd": lambda: f"{_labelled('memory', 'memory, SGD ÷ inference, all, batch 8'):.2f}",
    "memory-adam": lambda: f"{_labelled('memory', 'memory, Adam ÷ inference, all, batch 8'):.2f}",
    "drift": lambda: f"{_labelled('drift', 'weights changed by 240 queries, plain, float32'):.0%}",
    "replay-one": lambda: f"{_labelled('replay', 'seed + randn + add ÷ our replay, 1 direction'):.1f}",
    "replay-many": lambda: f"{_labelled('replay', 'seed + randn + add ÷ our replay, 64 directions'):.0f}",
    "replay-full": _full_round,
    "kernel": kernel_text,
    "cut-cosine": lambda: f"{_window(0)['gradient_cosine']:.2f}",
    "tail-cosine": lambda: f"{_window(64)['gradient_cosine']:.4f}",
    "tail-time": lambda: f"{1 / _window(64)['forward_time_over_full_window']:.1f}",
}


PAGES: dict[str, tuple[dict[str, Callable[[], str]], dict[str, Callable[[], str]]]] = {
    "README.md": (BLOCKS, {}),
    "docs/precision.md": (
        {
            "serving": serving.table,
            "held-differences": lambda: held_differences.table(_row(held_differences.NAME)),
            "learning-precision": learning.PRECISION,
        },
        {f"pass-{kind}": partial(serving.time_of_a_pass, kind) for kind in ("bfloat16", "int8")},
    ),
    "docs/train.md": ({}, {"startup": startup_text}),
    "docs/adapters.md": ({"switch": switch.table}, {}),
    "docs/tracking.md": ({}, {"tracker-cost": tracking.text, "page-cost": page.text}),
    "docs/results/adaptation.md": (tta.BLOCKS, {}),
    "docs/results/cost.md": ({"cost": cost_block, "install-size": install_size.text}, COST),
    "docs/results/demo.md": ({"full-demo": demo_block, "seeds": seeds_block}, {}),
    "docs/results/deployment.md": ({"wire": wire.table, "soak": soak.text}, {}),
    "docs/results/hostile.md": (privacy_report.HOSTILE, {}),
    "docs/results/learning.md": (learning.BLOCKS, {}),
    "docs/results/privacy.md": (
        privacy.BLOCKS | privacy_report.UTILITY | {"accountants": accountants.table, "secure-sums": secure_sums.table},
        {},
    ),
    "docs/results/scaling.md": (scaling.BLOCKS, {}),
}


def fill(text: str, blocks: dict[str, Callable[[], str]], inline: dict[str, Callable[[], str]]) -> str:
    """Return a page with all marked places replaced."""
    for name, make in blocks.items():
        text = _replace(text, name, "\n" + make() + "\n")
    for name, make in inline.items():
        text = _replace(text, name, make())
    return text


def _replace(text: str, name: str, made: str) -> str:
    pattern = rf"(<!-- {name} -->).*?(<!-- /{name} -->)"
    text, count = re.subn(pattern, lambda match: match[1] + made + match[2], text, flags=re.DOTALL)
    assert count >= 1, f"the page has no place for {name}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for name, (blocks, inline) in PAGES.items():
        page = ROOT / name
        before = page.read_text()
        after = fill(before, blocks, inline)
        if arguments.check and after != before:
            sys.exit(f"{name} does not show the committed results: run python -m benchmarks.pages.readme")
        page.write_text(after)
    shown = RESULTS / "table.md"
    if arguments.check and shown.read_text() != table.markdown(table.lines(RESULTS), table.sources(RESULTS)):
        sys.exit(
            "benchmarks/results/table.md does not show the committed results: run python -m benchmarks.pages.table"
        )


if __name__ == "__main__":
    main()
