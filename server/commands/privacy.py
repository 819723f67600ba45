"""`zo-asr privacy plan | verify`: the cost of a privacy guarantee, and the budget that a run has spent."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from zo_common.bar import working
from zo_common.cli import AsJson, command_group, run_typer
from zo_common.directions.seeds import Directions
from zo_common.errors import ConfigError
from zo_common.ledger.file import LEDGER_NAME, ledger_chains, read_ledger
from zo_common.privacy.charges import LOG_NAME, PrivacyLog, most_spent
from zo_common.privacy.mechanism import Privacy
from zo_common.privacy.plan import GRADIENT_SQUARE, GRADIENT_VARIANCE, PrivacyCost, PrivacyPlan

app = command_group("Plan and check differential privacy.")
console = Console(soft_wrap=True, highlight=False)


@app.command()
def plan(
    rounds: Annotated[int, typer.Option(help="Rounds in which a device is asked.")],
    epsilon: Annotated[float, typer.Option(help="The target ε.")] = 8.0,
    delta: Annotated[float, typer.Option(help="The target δ, below 1 over the utterances or devices.")] = 1e-6,
    level: Annotated[str, typer.Option(help='What is protected: "example", an utterance, or "device".')] = "example",
    steps: Annotated[int, typer.Option(help="Local steps a round.")] = 1,
    batch: Annotated[int, typer.Option(help="Expected batch size of a step.")] = 16,
    examples: Annotated[int, typer.Option(help="Utterances of the device that has the fewest.")] = 100,
    queries: Annotated[int, typer.Option(help="Directions a step.")] = 8,
    devices: Annotated[int, typer.Option(help="Devices that answer a round, at least.")] = 8,
    clip_norm: Annotated[float, typer.Option(help="Clip norm; 0 takes the usual norm by the two figures below.")] = 0.0,
    gradient_square: Annotated[float, typer.Option(help="|g|² along a direction.")] = GRADIENT_SQUARE,
    gradient_variance: Annotated[float, typer.Option(help="Variance of one utterance's.")] = GRADIENT_VARIANCE,
    directions: Annotated[str, typer.Option(help='"independent", or "shared" by all devices.')] = "independent",
    as_json: AsJson = False,
) -> None:
    """Show the noise that (ε, δ) requires and how much it is expected to slow training."""
    asked = PrivacyPlan(
        cast(Privacy, level), epsilon, delta, rounds, steps, batch, examples, queries, devices, clip_norm,
        gradient_square, gradient_variance, cast(Directions, directions),
    )  # fmt: skip
    with working("finding the noise"):
        cost = asked.result()
    if as_json:
        print(json.dumps({"plan": asdict(asked), "cost": asdict(cost)}))
        return
    console.print(_cost_table(asked, cost))
    console.print(_spending_table(cost))
    console.print(
        "Progress of a step is taken as ½·|g|⁴·q / (trace · (|g|² + v/B + noise²)), so the same progress takes "
        f"{cost.slow_down:.2f} times the steps; |g|² = {gradient_square:g} and v = {gradient_variance:g} are a "
        "measurement on Whisper-tiny.en's default tensors unless you give your own"
    )


def _cost_table(asked: PrivacyPlan, cost: PrivacyCost) -> Table:
    what = "one utterance" if asked.level == "example" else "all of one device"
    sampled = f"Poisson, {cost.rate:.4g} of the utterances a step" if cost.rate < 1 else "none: all take part"
    table = Table(title=f"{asked.level}-level: {what}", title_justify="left", show_header=False)
    for label, value in (
        ("target", f"ε {asked.epsilon:g} at δ {asked.delta:g}"),
        ("sampling", sampled),
        ("noise multiplier", f"{cost.noise_multiplier:.4f}"),
        ("clip norm", f"{cost.clip_norm:.4g} (usual norm {cost.usual_norm:.4g})"),
        ("noise std per scalar", f"{cost.noise_std:.4g}"),
        ("usual scalar std", f"{cost.scalar_std:.4g}"),
        ("noise ÷ scalar", f"{cost.noise_to_scalar:.3g}"),
        ("steps for the same progress", f"× {cost.slow_down:.3g}"),
        ("best learning rate", f"× {cost.learning_rate_factor:.3g}"),
    ):
        table.add_row(label, value)
    return table


def _spending_table(cost: PrivacyCost) -> Table:
    table = Table(title="spent", title_justify="left")
    table.add_column("after round", justify="right")
    table.add_column("ε", justify="right")
    for rounds, epsilon in cost.epsilon_after.items():
        table.add_row(str(rounds), f"{epsilon:.3f}")
    return table


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run's output directory, with ledger.zo and privacy.jsonl.")],
    as_json: AsJson = False,
) -> None:
    """Recompute what a run has spent from its charges, and check them against its ledger."""
    from server.guards.privacy_guard import answered_rounds

    ledger = read_ledger(run / LEDGER_NAME)
    level = ledger.header.settings.get("privacy", "none")
    if level == "none":
        raise ConfigError(f"{run / LEDGER_NAME} is of a run without privacy, which promises nothing: name one with it")
    log = PrivacyLog.read(run / LOG_NAME)
    log.check_terms(ledger.header.settings)
    log.check_against(ledger_chains(run / LEDGER_NAME), answered_rounds(ledger))
    delta = float(ledger.header.settings["target-delta"])
    target = float(ledger.header.settings["target-epsilon"])
    epsilon = most_spent(log.spent, delta)
    again = len(log.charges) - len({c.server_round for c in log.charges})
    if as_json:
        found = {"level": level, "epsilon": epsilon, "delta": delta, "target_epsilon": target}
        print(json.dumps(found | {"rounds": ledger.last_round, "charges": len(log.charges), "asked_again": again}))
        return
    console.print(
        f"{level}-level: ε {epsilon:.3f} of {target:g} spent at δ {delta:g}, {len(log.charges)} charges for "
        f"{ledger.last_round} rounds ({again} asked again after a stop); all of them hold"
    )


main = run_typer(app)

if __name__ == "__main__":
    main()
