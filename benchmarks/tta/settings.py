"""The settings of the comparison, chosen on the development split with `benchmarks.tta.study`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.tta.comparison import SMALL, Comparison
from client.adapt.adapter import AdaptSettings
from client.adapt.drift_guard import DriftBounds
from simulations.models.whisper_import import bundled_whisper

MODELS = ("wav2vec2-tiny-us", "whisper-tiny.en")

# a device's batch is all it has; an update is the mean of eight devices' directions, so that steps can be longer
_FEDERATION = {"scale": "rms", "batch-size": 8, "lr-schedule": "constant"}


def comparison(model: str) -> Comparison:
    """Return the comparison of one of `MODELS`."""
    return {"wav2vec2-tiny-us": _small, "whisper-tiny.en": _whisper}[model]()


def described(model: str) -> dict[str, Any]:
    """Return the settings as plain values."""
    return {key: value for key, value in asdict(comparison(model)).items() if key != "model"}


def _small() -> Comparison:
    episodic = AdaptSettings(
        steps=40, learning_rate=0.2, epsilon=1e-2, scale="rms", trained_tensors="norms+biases", patience=0
    )
    return Comparison(
        model=str(SMALL),
        utterances=24,
        episodic=episodic,
        continual=replace(episodic, steps=10),
        bounds=DriftBounds(max_drift=0.05, anchor=0.1),
        adam_rate=1e-3,
        federation=_FEDERATION
        | {
            "objective": "suta",
            "trained-tensors": "norms+biases",
            "epsilon": 1e-2,
            "learning-rate": 1.0,
            "num-server-rounds": 30,
        },
    )


def _whisper() -> Comparison:
    episodic = AdaptSettings(
        steps=20, learning_rate=3e-2, epsilon=1e-2, scale="rms", trained_tensors="encoder-norm", patience=0
    )
    return Comparison(
        model=str(bundled_whisper(Path("models"))),
        utterances=8,
        episodic=episodic,
        continual=replace(episodic, steps=5),
        bounds=DriftBounds(max_drift=0.05, anchor=0.1),
        adam_rate=1e-3,
        federation=_FEDERATION
        | {
            "objective": "entropy",
            "trained-tensors": "encoder-norm",
            "epsilon": 1e-2,
            "learning-rate": 0.1,
            "num-server-rounds": 10,
        },
    )
