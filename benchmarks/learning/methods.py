"""The compared methods: their construction, settings, and swept learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.learning.auto_tensors import AutoTensors
from benchmarks.learning.crowd import Crowd
from benchmarks.learning.first_order import LORA, FirstOrder
from benchmarks.learning.guarded import GuardedRounds
from benchmarks.learning.held import HeldRounds
from benchmarks.learning.lattice_rounds import LatticeRounds
from benchmarks.learning.learn import Budget
from benchmarks.learning.method import Method, Settings
from benchmarks.learning.published import FzooSteps, GaussianSteps
from benchmarks.learning.rates import FixedRate, MeasuredRate, Rate
from benchmarks.learning.variants import AveragedRounds, HardUtterances, MomentumRounds, UtteranceDirections
from zo_common.config.run import RunConfig
from zo_common.lattice.grid import Scale
from zo_common.lattice.trained import DEFAULT

ENCODER_BIASES = "encoder-residual-bias"
EARLY = "encoder-early"
TAIL = 64  # of methods without a loss check; the check takes less here
BIAS_EPSILON = 2e-2  # where a thousandth of the loss's differences along few biases would be rounding noise

Make = Callable[[Crowd, Settings, Budget], Method]


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes:
        title: in tables.
        settings: without task, seed and learning rate.
        rates: what is swept on the development split; empty: nothing is.
    """

    title: str
    make: Make
    settings: Settings
    rates: tuple[float, ...] = ()


def _rounds(kind: Callable[[Crowd, Settings, Rate], LatticeRounds] = LatticeRounds) -> Make:
    def make(crowd: Crowd, settings: Settings, budget: Budget) -> Method:
        return kind(crowd, settings, _rate(crowd, settings, budget))

    return make


def _rate(crowd: Crowd, settings: Settings, budget: Budget) -> Rate:
    if settings.learning_rate == 0:
        config = RunConfig(num_queries=settings.queries, local_steps=settings.local_steps, estimator=settings.estimator)
        return MeasuredRate(config)
    passes = settings.queries * (2 if settings.estimator == "two-sided" else 1) * settings.batch_size
    rounds = -(-budget.passes // (passes * settings.local_steps * crowd.devices))
    return FixedRate(settings.learning_rate, settings.schedule, rounds)


def _mezo(crowd: Crowd, settings: Settings, budget: Budget) -> Method:
    return GaussianSteps(crowd, settings)


def _zo_asr(crowd: Crowd, settings: Settings, budget: Budget) -> Method:
    return GaussianSteps(crowd, settings, total=True)


def _fzoo(crowd: Crowd, settings: Settings, budget: Budget) -> Method:
    return FzooSteps(crowd, settings)


def _first_order(crowd: Crowd, settings: Settings, budget: Budget) -> Method:
    return FirstOrder(crowd, settings)


def _published(
    name: str, title: str, make: Make, queries: int, rates: tuple[float, ...], bias: tuple[float, ...]
) -> Any:
    """Return a published rule on all weights, as its authors train, and on the tensors that ours trains."""
    whole = Settings(name, "all", queries=queries, tail_tokens=TAIL)
    few = Settings(f"{name}-bias", DEFAULT, queries=queries, epsilon=BIAS_EPSILON, tail_tokens=TAIL)
    return {
        name: Entry(f"{title}, all weights", make, whole, rates),
        few.method: Entry(f"{title}, our tensors", make, few, bias),
    }


def _adam(name: str, tensors: str, title: str, rates: tuple[float, ...], **others: Any) -> dict[str, Entry]:
    return {name: Entry(title, _first_order, Settings(name, tensors, **{"local_steps": 4, **others}), rates)}


_OURS = Settings(
    "auto", DEFAULT, epsilon=0.0, tail_tokens=-1, batch_size=4, clip_utterances=RunConfig().clip_utterances
)
_RATES = (1e-3, 2e-3, 4e-3)
_BIAS_RATES = (0.01, 0.03, 0.1)

METHODS: dict[str, Entry] = {
    "fixed": Entry(
        "ours, as tuned by hand before",
        _rounds(),
        Settings("fixed", EARLY, learning_rate=2e-3, schedule="linear", scale="unit", epsilon=1e-3, tail_tokens=TAIL),
    ),
    # the settings that docs/tutorials/without-transcripts.md has for federated runs of CTC models
    "fixed-ctc": Entry(
        "ours, as tuned by hand before for CTC",
        _rounds(),
        Settings("fixed-ctc", "norms+biases", schedule="linear", scale="rms", epsilon=1e-2),
        (0.3, 1.0, 3.0),
    ),
    "fixed-swept": Entry(
        "ours, its learning rate swept", _rounds(), Settings("fixed-swept", EARLY, schedule="linear"), _RATES
    ),
    "bias-swept": Entry(
        "ours, default tensors, learning rate swept", _rounds(), replace(_OURS, method="bias-swept"), _BIAS_RATES
    ),
    "auto": Entry("ours, auto", _rounds(GuardedRounds), _OURS),
    "auto-encoder": Entry(
        "ours, auto, biases of the encoder alone",
        _rounds(GuardedRounds),
        replace(_OURS, method="auto-encoder", tensors=ENCODER_BIASES),
    ),
    "auto-tensors": Entry(
        "ours, auto, calibrated tensors", _rounds(AutoTensors), replace(_OURS, method="auto-tensors", tensors="auto")
    ),
    **_published("mezo", "MeZO", _mezo, 1, (1e-6, 1e-5, 1e-4), (1e-4, 1e-3, 1e-2)),
    # its settings are for the sum over 8 queries
    **_published("zo-asr", "ZO-ASR", _zo_asr, 8, (1e-7, 1e-6, 3e-6), (1e-4, 1e-3, 1e-2)),
    **_published("fzoo", "FZOO", _fzoo, 8, (1e-8, 1e-7, 1e-6), (1e-4, 3.3e-4, 1.1e-3)),
    **_adam("fedavg-all", "all", "FedAvg with Adam, all weights", (1e-6, 3e-6, 1e-5)),
    **_adam("fedavg-lora", LORA, "FedAvg with Adam, LoRA of rank 8", (1e-4, 3e-4, 1e-3)),
    **_adam("fedavg-bias", "bias", "FedAvg with Adam, all biases", (3e-4, 1e-3, 3e-3)),
    **_adam("adam-all", "all", "Adam, all weights", (1e-6, 3e-6, 1e-5), devices=1, local_steps=1),
    **_adam("adam-same", DEFAULT, "Adam, our tensors", (3e-3, 1e-2, 3e-2), devices=1, local_steps=1),
    **_adam("adam-early", EARLY, "Adam, encoder-early", (1e-5, 1e-4, 3e-4), devices=1, local_steps=1),
}

# at equal passes, against "auto" (or "bias-swept" where the step is not measured)
_HALF = _OURS.queries // 2
VARIANTS: dict[str, Entry] = {
    "unguarded": Entry("without the guard, as those below", _rounds(), replace(_OURS, method="unguarded")),
    "per-utterance": Entry(
        "directions of each utterance's own", _rounds(UtteranceDirections), replace(_OURS, method="per-utterance")
    ),
    "two-sided": Entry(
        "two-sided", _rounds(), replace(_OURS, method="two-sided", estimator="two-sided", queries=_HALF)
    ),
    "averaged": Entry("mean of the last 4 rounds", _rounds(AveragedRounds), replace(_OURS, method="averaged")),
    "hard": Entry("without utterances heard without error", _rounds(HardUtterances), replace(_OURS, method="hard")),
    "momentum": Entry("momentum of 0.7", _rounds(MomentumRounds), replace(_OURS, method="momentum")),
}


def directions_study(directions: tuple[int, ...] = (8, 32, 64, 128, 512)) -> dict[str, Entry]:
    """Return entries of equal passes: directions a round, one device or eight, one local step or four."""
    found = {}
    for total in directions:
        for devices in (1, 8):
            for steps in (1, 4):
                queries = total // devices // steps
                if queries < 2:
                    continue
                name = f"directions-{total}-{devices}-{steps}"
                settings = replace(_OURS, method=name, devices=devices, local_steps=steps, queries=queries)
                title = f"{total} directions: {devices} × {steps} × {queries}"
                found[name] = Entry(title, _rounds(), settings)
    return found


def tensors_study() -> dict[str, Entry]:
    """Return the measured step on other tensors and scales, for CTC models."""
    kinds: dict[str, tuple[str, Scale]] = {
        "residual": ("*attention.out_proj.bias,*output_dense.bias", "unit-wide"),
        "gains": ("*norm.weight", "unit-wide"),
        "norms": ("norms", "rms"),
        "norms-biases": ("norms+biases", "rms"),
        "early": (EARLY, "unit-wide"),
    }
    return {
        f"tensors-{name}": Entry(
            f"{tensors}, {scale}",
            _rounds(),
            replace(_OURS, method=f"tensors-{name}", tensors=tensors, scale=scale),
        )
        for name, (tensors, scale) in kinds.items()
    }


# against "auto", whose frozen weights are float32
PRECISIONS: dict[str, Entry] = {
    f"precision-{name}": Entry(
        f"frozen weights in {name}",
        _rounds(partial(HeldRounds, precision=name)),
        replace(_OURS, method=f"precision-{name}"),
    )
    for name in ("bfloat16", "int8")
}

STUDIES: dict[str, dict[str, Entry]] = {
    "tensors": tensors_study(),
    "directions": directions_study(),
    "variants": VARIANTS,
    "precision": PRECISIONS,
}
ALL: dict[str, Entry] = METHODS | {name: entry for study in STUDIES.values() for name, entry in study.items()}
