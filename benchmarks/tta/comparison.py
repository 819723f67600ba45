"""Methods compared on each model, with the settings that `benchmarks.tta.study` found on the development split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.tta.federated import federated
from benchmarks.tta.methods import Outcome, Passes, first_order, source, zeroth_order
from benchmarks.tta.speech import speech
from client.adapt.adapter import AdaptSettings
from client.adapt.drift_guard import DriftBounds
from simulations.models.pretrain_ctc import PRETRAINED
from zo_common.config.run import RunConfig
from zo_common.models.load import load_model

SMALL = PRETRAINED / "wav2vec2-tiny-us"
FEDERATED = "zo-federated"
METHODS = ("source", "zo-episodic", "zo-continual", FEDERATED, "adam-episodic")


@dataclass(frozen=True)
class Comparison:
    """The methods' settings for one model.

    Attributes:
        utterances: of each condition and seed.
        episodic, continual, bounds: of ZO-TTA.
        federation: run-config of federated ZO-TTA.
        adam_rate: of SUTA's optimiser.
    """

    model: str
    utterances: int
    episodic: AdaptSettings
    continual: AdaptSettings
    bounds: DriftBounds
    adam_rate: float
    federation: Mapping[str, Any] = field(default_factory=dict)

    def settings_of(self, method: str) -> dict[str, Any]:
        """Return all that a method's numbers depend on but the model, the speech and the seed."""
        episodic = asdict(self.episodic)
        tuned = {key: episodic[key] for key in ("trained_tensors", "objective", "suta")}
        return {"utterances": self.utterances} | {
            "source": {},
            "zo-episodic": episodic,
            "zo-continual": asdict(self.continual) | asdict(self.bounds),
            FEDERATED: dict(self.federation),
            "adam-episodic": tuned | {"rate": self.adam_rate},
        }[method]

    def outcomes(self, condition: str, seed: int, methods: Sequence[str]) -> Iterator[tuple[str, float, Outcome]]:
        """Return (method, WER, outcome) of some methods, but not of the federation, in turn on the same utterances."""
        loaded = load_model(self.model)
        passes = Passes(loaded)
        spoken = speech(condition, seed, self.utterances)
        episodic, continual = (replace(s, seed=seed) for s in (self.episodic, self.continual))
        work: dict[str, Callable[[], Outcome]] = {
            "source": lambda: source(loaded, passes, spoken),
            "zo-episodic": lambda: zeroth_order(loaded, passes, spoken, episodic, None),
            "zo-continual": lambda: zeroth_order(loaded, passes, spoken, continual, self.bounds),
            "adam-episodic": lambda: first_order(loaded, passes, spoken, episodic, self.adam_rate),
        }
        source(loaded, passes, spoken[:1])  # the first pass in a process is slower than others
        for name in methods:
            outcome = work[name]()
            yield name, outcome.scores(spoken).wer, outcome

    def federated(self, condition: str, seed: int) -> tuple[float, Outcome]:
        """Return WER and outcome of the federation: its devices are the speakers."""
        spoken = speech(condition, seed, self.utterances)
        config = RunConfig.from_mapping({**self.federation, "model": self.model, "run-seed": seed})
        outcome = federated(config, spoken)
        return outcome.scores(spoken).wer, outcome
