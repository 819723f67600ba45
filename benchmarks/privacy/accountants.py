"""ε of this package's accountant beside Flower's and Microsoft's: `python -m benchmarks.privacy.accountants`.

Flower's `RdpAccountant` also composes Rényi divergences, for neighbours of which one has an example or a device more,
and with fractional orders. Microsoft's `prv-accountant` composes the privacy loss itself, numerically (Gopi, Lee and
Wutschitz, arXiv 2106.02848): within an error that it states, no smaller ε holds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.harness.revision import revision
from benchmarks.harness.rows import RESULTS
from simulations.reports.machine import versions
from zo_common.privacy.accountant import Release, epsilon_spent

ROWS = RESULTS / "accountants.json"
_ERROR = 0.01  # of ε, that the numerical composition states


@dataclass(frozen=True)
class Setting:
    """Answers that are all alike.

    Attributes:
        batch, examples: a Poisson sample of `batch` out of `examples`; equal: no sample, as of devices.
    """

    noise_multiplier: float
    batch: int
    examples: int
    answers: int
    delta: float


SETTINGS = (
    Setting(1.0, 16, 400, 40, 1e-5),
    Setting(1.0, 4, 40, 320, 1e-5),
    Setting(2.5, 4, 40, 320, 1e-5),
    Setting(1.3, 150, 60_000, 6_000, 1e-5),
    Setting(1.7, 1, 1, 6, 1e-6),
    Setting(6.0, 1, 1, 40, 1e-6),
    Setting(20.0, 1, 1, 320, 1e-6),
)


def ours(setting: Setting) -> float:
    """Return ε as this package accounts for it."""
    return epsilon_spent(
        {Release(setting.noise_multiplier, setting.batch, setting.examples): setting.answers}, setting.delta
    )


def flowers(setting: Setting) -> float:
    """Return ε of Flower's accountant."""
    from flwr.serverapp import RdpAccountant
    from flwr.supercore.privacy_accounting import (
        GaussianPrivacyEvent,
        NeighboringRelation,
        PrivacyConfig,
        SamplingMethod,
    )

    sampling = SamplingMethod.NO_AMPLIFICATION if setting.batch == setting.examples else SamplingMethod.POISSON
    config = PrivacyConfig(setting.delta, setting.examples, NeighboringRelation.ADD_OR_REMOVE_ONE, sampling)
    accountant = RdpAccountant(config)
    event = GaussianPrivacyEvent(setting.noise_multiplier, setting.batch, setting.examples)
    accountant.compose(event, setting.answers)
    return float(accountant.get_epsilon(setting.delta))


def numerical(setting: Setting) -> tuple[float, float]:
    """Return a lower and an upper bound of the smallest ε that holds."""
    from prv_accountant.dpsgd import DPSGDAccountant

    accountant = DPSGDAccountant(
        noise_multiplier=setting.noise_multiplier,
        sampling_probability=setting.batch / setting.examples,
        eps_error=_ERROR,
        delta_error=setting.delta / 1000,
        max_steps=setting.answers,
    )
    low, _, high = accountant.compute_epsilon(delta=setting.delta, num_steps=setting.answers)
    return float(low), float(high)


def rows() -> list[dict[str, Any]]:
    """Return ε of all settings by all accountants."""
    found = []
    for setting in SETTINGS:
        low, high = numerical(setting)
        found.append(asdict(setting) | {"ours": ours(setting), "flower": flowers(setting), "low": low, "high": high})
    return found


def table() -> str:
    """Return the committed rows as a table."""
    lines = [
        "| noise multiplier | sampled | answers | δ | ours | Flower's | numerical composition |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in json.loads(ROWS.read_text())["rows"]:
        sampled = "–" if row["batch"] == row["examples"] else f"{row['batch']:,} of {row['examples']:,}"
        lines.append(
            f"| {row['noise_multiplier']:g} | {sampled} | {row['answers']:,} | {row['delta']:g} | {row['ours']:.3f} | "
            f"{row['flower']:.3f} | {row['low']:.3f} … {row['high']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    about = {"command": "python -m benchmarks.privacy.accountants", "revision": revision(), "versions": versions()}
    ROWS.write_text(json.dumps(about | {"rows": rows()}, indent=1) + "\n")
    print(table(), file=sys.stderr)


if __name__ == "__main__":
    main()
