"""Tables for the docs: what privacy costs, and what hostile devices do under each rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.rows import RESULTS

ATTACKERS = "python -m benchmarks.attackers"
UTILITY_COMMAND = "python -m benchmarks.privacy_utility"


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _percent(numbers: dict[str, Any]) -> str:
    """Mean ± standard deviation in percent; the mean alone of a single seed."""
    spread = f" ± {100 * numbers['std']:.1f}" if len(numbers["values"]) > 1 else ""
    return f"{100 * numbers['mean']:.1f}{spread}"


def _over(seeds: list[int]) -> str:
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def errors(measure: str) -> str:
    """Error rates by guarantee and ε, a column for each number of devices."""
    row = _load("privacy_utility")
    counts = list(dict.fromkeys(cell["devices"] for cell in row["cells"]))
    lines = [
        f"| {measure.upper()}, % | " + " | ".join(f"{count} devices" for count in counts) + " |",
        "|---" * (1 + len(counts)) + "|",
        "| before training | " + " | ".join(f"{100 * row['cells'][0]['before'][measure]:.1f}" for _ in counts) + " |",
    ]
    for level, target in dict.fromkeys((cell["level"], cell["target"]) for cell in row["cells"]):
        here = {c["devices"]: c for c in row["cells"] if (c["level"], c["target"]) == (level, target)}
        label = "ε = ∞" if target is None else f"ε = {target:g}, {level}-level"
        lines.append(f"| {label} | " + " | ".join(_percent(here[count][measure]) for count in counts) + " |")
    return "\n".join(lines)


def noise() -> str:
    """What the noise of each place is against what devices measure."""
    lines = [
        "| guarantee | devices | noise multiplier | noise ÷ what is measured, a scalar | steps for the same progress |",
        "|---" * 5 + "|",
    ]
    for cell in _load("privacy_utility")["cells"]:
        if cell["target"] is not None:
            ratio, label = cell["noise_std"] / cell["scalar_std"], f"ε = {cell['target']:g}, {cell['level']}-level"
            lines.append(
                f"| {label} | {cell['devices']} | {cell['noise_multiplier']:.2f} | "
                f"{ratio:.2f} | × {cell['slow_down']:.3g} |"
            )
    return "\n".join(lines)


def utility() -> str:
    """Error rates against ε, the noise behind them, and what they are of."""
    row = _load("privacy_utility")
    about = row["settings"]
    needed = " and ".join(
        f"{each['devices']:,} at ε = {each['target']:g} (δ = {each['delta']:.2g})" for each in row["devices_for"]
    )
    slopes = row["slopes"]
    text = (
        f"`{UTILITY_COMMAND}`: {row['model']}, supervised, {about['trained_tensors']}, {about['rounds']} rounds of "
        f"{about['queries']} shared directions, {about['utterances']} utterances a round over all devices, "
        f"δ = {about['delta']:g}; mean ± standard deviation over {_over(row['seeds'])}. Planned with the measured "
        f"|g|² = {slopes['gradient_square']:.3g} and v = {slopes['gradient_variance']:.3g}: from so many devices of "
        "one utterance a round on, all of them asked each round, device-level privacy costs at most twice the steps: "
        f"{needed}."
    )
    return "\n\n".join([errors("wer"), errors("cer"), noise(), text])


def resistance() -> str:
    """Word error rates by attack and share, a column for each rule."""
    row = _load("attackers")
    cells = {(c["attack"], c["share"], c["aggregation"]): c for c in row["cells"]}
    rules = list(dict.fromkeys(cell["aggregation"] for cell in row["cells"]))
    places = sorted({key[:2] for key in cells}, key=lambda place: (place[0] != "none", _order(row, place[0]), place[1]))
    lines = [
        "| attack | hostile | " + " | ".join(f"`{rule}`" for rule in rules) + " |",
        "|---" * (2 + len(rules)) + "|",
    ]
    for attack, share in places:
        found = [_cell(cells[attack, share, rule]) for rule in rules]
        lines.append(f"| {attack} | {round(share * row['devices'])} of {row['devices']} | " + " | ".join(found) + " |")
    about = row["settings"]
    left = any(cell["left_lattice"] for cell in row["cells"])
    lines += [
        "",
        f"WER in %, {100 * row['before']['wer']:.1f} before training; `{ATTACKERS}`: {row['model']}, {row['devices']} "
        f"devices, {about['rounds']} rounds of {about['queries']} directions, mean ± standard deviation over "
        f"{_over(about['seeds'])}."
        + (" A star: the update did not fit the lattice and the run ended there." if left else ""),
    ]
    return "\n".join(lines)


def _order(row: dict[str, Any], attack: str) -> int:
    names = list(dict.fromkeys(cell["attack"] for cell in row["cells"]))
    return names.index(attack)


def _cell(cell: dict[str, Any]) -> str:
    star = "*" if cell["left_lattice"] else ""
    return (_percent(cell["wer"]) if "wer" in cell else "no words") + star


def _measured(name: str, command: str, make: Callable[[], str]) -> Callable[[], str]:
    """The text, or that there is none yet."""
    return lambda: make() if (RESULTS / f"{name}.json").exists() else f"Not measured yet: `{command}`."


UTILITY = {"utility": _measured("privacy_utility", UTILITY_COMMAND, utility)}
HOSTILE = {"resistance": _measured("attackers", ATTACKERS, resistance)}
