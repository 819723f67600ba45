"""Tables for the docs: what privacy costs, and what hostile devices do under each rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.harness.rows import RESULTS, spread
from benchmarks.privacy import planned

ATTACKERS = "python -m benchmarks.hostile.attackers"
UTILITY_COMMAND = "python -m benchmarks.privacy.utility"


def _load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _percent(numbers: dict[str, Any]) -> str:
    """Return mean ± standard deviation in percent; the mean alone of a single seed."""
    around = f" ± {100 * numbers['std']:.1f}" if len(numbers["values"]) > 1 else ""
    return f"{100 * numbers['mean']:.1f}{around}"


def _show(measure: str, numbers: dict[str, Any]) -> str:
    return _loss(numbers) if measure == "loss" else _percent(numbers)


def _name(measure: str) -> str:
    return "loss" if measure == "loss" else f"{measure.upper()}, %"


def _over(seeds: list[int]) -> str:
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"


def _loss(numbers: dict[str, Any]) -> str:
    """Return mean ± standard deviation; the mean alone of a single seed."""
    around = f" ± {numbers['std']:.3f}" if len(numbers["values"]) > 1 else ""
    return f"{numbers['mean']:.3f}{around}"


def errors(measure: str) -> str:
    """Return a measure by guarantee and ε, error rates in percent, a column for each number of devices."""
    row = _load("privacy_utility")
    counts = list(dict.fromkeys(cell["devices"] for cell in row["cells"]))
    before = spread([row["cells"][0]["before"][measure]])
    lines = [
        f"| {_name(measure)} | " + " | ".join(f"{count} devices" for count in counts) + " |",
        "|---" * (1 + len(counts)) + "|",
        "| before training | " + " | ".join(_show(measure, before) for _ in counts) + " |",
    ]
    for level, target in dict.fromkeys((cell["level"], cell["target"]) for cell in row["cells"]):
        here = {c["devices"]: c for c in row["cells"] if (c["level"], c["target"]) == (level, target)}
        label = "ε = ∞" if target is None else f"ε = {target:g}, {level}-level"
        lines.append(f"| {label} | " + " | ".join(_show(measure, here[count][measure]) for count in counts) + " |")
    return "\n".join(lines)


def noise() -> str:
    """Return what the noise of each place is against what devices measure."""
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
    """Return error rates against ε, the noise behind them, and what they are of."""
    row = _load("privacy_utility")
    about = row["settings"]
    needed = " and ".join(
        f"{each['devices']:,} at ε = {each['target']:g} (δ = {each['delta']:.2g})" for each in row["devices_for"]
    )
    slopes = row["slopes"]
    text = (
        f"`{UTILITY_COMMAND}`: {row['model']}, supervised, {about['trained_tensors']}, {about['rounds']} rounds of "
        f"{about['queries']} shared directions, {about['utterances']} utterances a round over all devices, "
        f"learning rate {about['learning_rate']}, δ = {about['delta']:g}; "
        f"{'mean ± standard deviation over ' * (len(row['seeds']) > 1)}{_over(row['seeds'])}. Planned with the "
        f"measured |g|² = {slopes['gradient_square']:.3g} and v = {slopes['gradient_variance']:.3g}: from so many "
        "devices of one utterance a round on, all of them asked each round, device-level privacy costs at most twice "
        f"the steps: {needed}."
    )
    return "\n\n".join([errors("wer"), errors("cer"), errors("loss"), noise(), text])


def planned_costs() -> str:
    """Return the planned cost of a guarantee for different trained tensors."""
    return planned.table(_load(planned.NAME))


def resistance() -> str:
    """Return word error rates and losses by attack and share, a column for each rule, and whom the server reported."""
    row = _load("attackers")
    about, before = row["settings"], row["before"]
    left = any(cell["left_lattice"] for cell in row["cells"])
    text = (
        f"`{ATTACKERS}`: {row['model']}, {row['devices']} devices, {about['rounds']} rounds of {about['queries']} "
        f"directions, mean ± standard deviation over {_over(about['seeds'])}. Before training the WER is "
        f"{100 * before['wer']:.1f} %, the loss {before['loss']:.3f}."
        + (" A star: the update did not fit the lattice and the run ended there." if left else "")
    )
    return "\n\n".join([_by_rule(row, "wer"), _by_rule(row, "loss"), _reported(row), text])


def _by_rule(row: dict[str, Any], measure: str) -> str:
    cells = {(c["attack"], c["share"], c["aggregation"]): c for c in row["cells"]}
    rules = list(dict.fromkeys(cell["aggregation"] for cell in row["cells"]))
    lines = [
        f"| {_name(measure)}: attack | hostile | " + " | ".join(f"`{rule}`" for rule in rules) + " |",
        "|---" * (2 + len(rules)) + "|",
    ]
    for attack, share in _places(row):
        found = [_cell(cells[attack, share, rule], measure) for rule in rules]
        lines.append(f"| {attack} | {round(share * row['devices'])} of {row['devices']} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def _reported(row: dict[str, Any]) -> str:
    """Return whom the server's look at the scalars reported by the end, under all rules together."""
    lines = ["| attack | hostile | of them reported | honest devices reported |", "|---" * 4 + "|"]
    for attack, share in _places(row):
        here = [c for c in row["cells"] if (c["attack"], c["share"]) == (attack, share)]
        hostile, found, accused = (sum(c[key] for c in here) for key in ("hostile", "found", "accused"))
        everyone = len(here) * len(row["settings"]["seeds"]) * row["devices"]
        shown = f"{found / hostile:.0%}" if hostile else "nobody is"
        lines.append(
            f"| {attack} | {round(share * row['devices'])} of {row['devices']} | {shown} | "
            f"{accused / (everyone - hostile):.1%} |"
        )
    return "\n".join(lines)


def _places(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Return attacks and shares in the order of the rows, nobody hostile first."""
    found = dict.fromkeys((cell["attack"], cell["share"]) for cell in row["cells"])
    return sorted(found, key=lambda place: (place[0] != "none", _order(row, place[0]), place[1]))


def _order(row: dict[str, Any], attack: str) -> int:
    names = list(dict.fromkeys(cell["attack"] for cell in row["cells"]))
    return names.index(attack)


def _cell(cell: dict[str, Any], measure: str) -> str:
    star = "*" if cell["left_lattice"] else ""
    return (_show(measure, cell[measure]) if measure in cell else "no words") + star


def _measured(name: str, command: str, make: Callable[[], str]) -> Callable[[], str]:
    """Return the text, or that there is none yet."""
    return lambda: make() if (RESULTS / f"{name}.json").exists() else f"Not measured yet: `{command}`."


UTILITY = {
    "utility": _measured("privacy_utility", UTILITY_COMMAND, utility),
    "planned-costs": _measured(planned.NAME, "python -m benchmarks.privacy.planned", planned_costs),
}
HOSTILE = {"resistance": _measured("attackers", ATTACKERS, resistance)}
