"""Simulated devices in this process: one model shared by all in turn, each device's recordings, and the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.tasks import Task
from client.device.loss_choice import UtteranceTrials
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.lattice.state import LatticeState
from zo_common.models.compute import resolve_precision
from zo_common.models.load import load_model
from zo_common.models.loss_check import MOST_UTTERANCES, Asked, check_loss
from zo_common.models.whisper.objectives import whisper_losses
from zo_common.speech.comparison import error_counts
from zo_common.speech.evaluation import evaluate, held_out_loss
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.manifest import read_manifest
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.partition import Partitions
from zo_common.speech.recordings import Reader, Recordings, read_speech, spread
from zo_common.speech.speech_model import LossOf, SpeechModel
from zo_common.speech.whisper import SpeechDataset

_BATCH_STREAM = 1 << 40  # as a device's
_EVAL_BATCH = 8


@dataclass(frozen=True)
class Judgement:
    """Held-out speech on the full window: mean loss in nats a token or character, and word errors.

    Attributes:
        errors, units: of each utterance, as `error_counts` has them; from them follows how sure a change is.
    """

    loss: float
    wer: float
    cer: float
    utterances: int
    errors: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)


class Crowd:
    """Devices of a task; every crowd has a model of its own, as it was published.

    Args:
        devices: 1 has all training speech.
        threads: of torch; 0 leaves it as it is.
        cache: folder of features; they are computed once.
    """

    def __init__(self, task: Task, devices: int, *, seed: int = 0, threads: int = 0, cache: Path | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.task, self.devices = task, devices
        self.speech = speech_model(load_model(task.model))
        self.model: Any = self.speech.model
        self._config = RunConfig(model=task.model, data=task.data, language=task.language)
        reader = self.speech.reader(language=task.language, cache_dir=cache)
        self.shares = _shares(task, reader, devices, seed)
        self.dev = read_speech(task.data, reader, split="dev")
        self.test = read_speech(task.data, reader, split="test")
        self._reader = reader
        self.choices: list[str] = []

    def examples(self, device: int) -> int:
        """Return the number of utterances of a device."""
        return len(self.shares[device])

    def losses(self, trained: Collection[str], tail_tokens: int, precision: str = "auto") -> LossOf:
        """Return the function batch → loss of a step; `trained` are the names of the trained tensors."""
        settings = LossSettings.of(self._config, tail_tokens)
        device = next(self.model.parameters()).device
        return self.speech.losses(trained, settings, resolve_precision(precision, device))

    def chosen_loss(self, state: LatticeState, tail_tokens: int, epsilon: float) -> tuple[LossOf, float]:
        """Return the function batch → loss, and its perturbation; the loss check of device 0 chooses −1 and 0."""
        if tail_tokens >= 0 and epsilon > 0:
            return self.losses(state.exponents, tail_tokens), epsilon
        device = next(self.model.parameters()).device
        few = spread(self.shares[0], MOST_UTTERANCES)
        trials = UtteranceTrials(self.speech, few, list(state.exponents), self._config, device)
        asked = Asked(
            tail_tokens if tail_tokens >= 0 else None, None, epsilon or None, resolve_precision("auto", device)
        )
        choice = check_loss(state, trials, asked)
        print(f"  {choice.sentence}", flush=True)
        self.choices.append(choice.sentence)
        settings = LossSettings.of(self._config, choice.tail_tokens)
        return self.speech.losses(state.exponents, settings, choice.precision), choice.epsilon

    def draw(self, device: int, seed: int, step: int, size: int) -> list[int]:
        """Return which of its utterances a device takes for a local step, drawn as the device itself does."""
        generator = np.random.default_rng(fold_in(seed, _BATCH_STREAM, device, step))
        return self.shares[device].draw(size, generator)

    def batch(self, device: int, chosen: Sequence[int]) -> Any:
        """Return some of a device's utterances as inputs of the model."""
        batch: Any = self.shares[device].batch(chosen)
        return batch.to(next(self.model.parameters()).device)

    def dev_loss(self) -> float:
        """Return mean loss of the development split in float32, on the full window."""
        return full_loss(self.speech, self.dev)

    def judge(self, data: Recordings | None = None, most: int = 0) -> Judgement:
        """Return word errors and loss of the test split or of other speech, of so many utterances (0: all)."""
        data = self.test if data is None else data
        data = spread(data, most) if most else data
        found = evaluate(self.speech, data, language=self.task.language)
        scores, language = found.scores, self.task.language
        pairs = zip(data.texts, found.hypotheses, strict=True)
        counts = [error_counts(said, heard, language) for said, heard in pairs]
        errors, units = ([count[place] for count in counts] for place in (0, 1))
        return Judgement(full_loss(self.speech, data), scores.wer, scores.cer, scores.utterances, errors, units)

    def read(self, folder: str, split: str = "test") -> Recordings:
        """Read other speech for this model."""
        return read_speech(folder, self._reader, split=split)


def _shares(task: Task, reader: Reader, devices: int, seed: int) -> list[Recordings]:
    manifest = read_manifest(task.data, split="train")
    if devices == 1:
        return [read_speech(manifest, reader)]
    shares = Partitions(manifest.utterances, devices, task.partition, seed=seed)
    examples = read_speech(manifest, reader).examples
    return [reader.recordings(tuple(examples[i] for i in shares.of(d)), ()) for d in range(devices)]


@torch.inference_mode()
def full_loss(speech: SpeechModel, data: Recordings) -> float:
    """Return mean loss of an utterance in float32; Whisper's on its whole 30 s window, without any approximation."""
    if not isinstance(data, SpeechDataset):
        return held_out_loss(speech, data)
    model = speech.model
    found = [
        whisper_losses(model, data.batch(chosen, full_window=True).to(next(model.parameters()).device))
        for chosen in data.length_sorted_batches(_EVAL_BATCH)
    ]
    return float(torch.cat(found).double().mean())


MakeCrowd = Callable[[Task, int, int], Crowd]
