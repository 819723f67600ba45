"""The ways of adapting that are compared, on the same utterances, tensors and objective."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.tta.speech import Spoken
from client.adapt.adapter import DEFAULTS, Adapter, AdaptSettings
from client.adapt.drift_guard import DriftBounds
from client.adapt.file import encode_file
from client.adapt.pieces import episode, listen, objective_of
from zo_common.estimator.step import LossFn
from zo_common.lattice.trained import select
from zo_common.models.load import LoadedModel
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.metrics import Scores, score
from zo_common.speech.model_kinds import speech_model

ADAM_STEPS = 10  # SUTA's


@dataclass(frozen=True)
class Outcome:
    """Result of a method on a set of utterances; all but the transcripts are means an utterance.

    Attributes:
        forwards: passes through the model, transcribing included.
        backwards: of them, how many were also run backwards.
        seconds: of a core, transcribing included: other work on the machine does not count.
        stored: bytes of the adaptation.
    """

    transcripts: tuple[str, ...]
    forwards: float
    backwards: float
    seconds: float
    stored: float

    def scores(self, spoken: Sequence[Spoken]) -> Scores:
        """Return error counts against what was said."""
        return score([one.text for one in spoken], self.transcripts)


class Passes:
    """Counts forward passes of a model: transcriptions, and evaluations of an objective.

    Those of Whisper's objectives may take the encoder's states from a cache; they end in one projection of all tokens
    together, where decoding projects token by token.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        encoder = model.get_encoder() if hasattr(model, "proj_out") else model.base_model
        self.count = 0
        encoder.register_forward_pre_hook(self._count)
        if hasattr(model, "proj_out"):
            model.proj_out.register_forward_pre_hook(self._count_objective)

    def _count(self, module: nn.Module, inputs: Any) -> None:
        self.count += 1

    def _count_objective(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.count += inputs[0].dim() == 2


def measured(passes: Passes, count: int, work: Callable[[], tuple[list[str], float, float]]) -> Outcome:
    """Run `work`, which gives transcripts, bytes and backward passes in all, on `count` utterances."""
    before, start = passes.count, time.process_time()
    transcripts, stored, backwards = work()
    taken = time.process_time() - start
    return Outcome(
        tuple(transcripts), (passes.count - before) / count, backwards / count, taken / count, stored / count
    )


def source(loaded: LoadedModel, passes: Passes, spoken: Sequence[Spoken]) -> Outcome:
    """Transcribe without adaptation."""
    adapter = Adapter(loaded, AdaptSettings(steps=0))
    return measured(passes, len(spoken), lambda: ([adapter.transcribe(one.wave) for one in spoken], 0.0, 0.0))


def zeroth_order(
    loaded: LoadedModel, passes: Passes, spoken: Sequence[Spoken], settings: AdaptSettings, bounds: DriftBounds | None
) -> Outcome:
    """Adapt by ZO-TTA in episodes, or with `bounds` continually, in the order of the utterances."""
    adapter = Adapter(loaded, replace(settings, continual=bounds))

    def work() -> tuple[list[str], float, float]:
        texts, stored = [], 0
        for one in spoken:
            found = adapter.adapt(one.wave)
            texts.append(found.after)
            stored += len(encode_file(adapter.file_of(found)))
        return texts, stored, 0.0

    try:
        return measured(passes, len(spoken), work)
    finally:
        adapter.reset()


def first_order(
    loaded: LoadedModel,
    passes: Passes,
    spoken: Sequence[Spoken],
    settings: AdaptSettings,
    learning_rate: float,
    steps: int = ADAM_STEPS,
) -> Outcome:
    """Adapt by SUTA's Adam on the same tensors and objective, in episodes; it would store those tensors."""
    speech = speech_model(loaded)
    weights = select(loaded.model, settings.trained_tensors or DEFAULTS[speech.name].trained_tensors)
    losses, reader = LossSettings(objective_of(speech, settings.objective), suta=settings.suta), speech.reader()

    def work() -> tuple[list[str], float, float]:
        texts = []
        backwards = 0
        with _trainable(list(weights.values())) as tensors:
            for one in spoken:
                (transcribed,) = listen(speech, reader, [one.wave], "en")
                if transcribed.tokens or speech.adapts_to_silence:
                    make = episode(speech, reader, [(one.wave, transcribed)], list(weights), losses, "float32")
                    adam_steps(make, tensors, learning_rate, steps)
                    backwards += steps
                texts.append(listen(speech, reader, [one.wave], "en")[0].text)
                _restore(tensors)
        return texts, len(spoken) * sum(4 * w.numel() for w in weights.values()), backwards

    return measured(passes, len(spoken), work)


def adam_steps(
    make: Callable[[], LossFn], tensors: Sequence[tuple[nn.Parameter, torch.Tensor]], rate: float, steps: int
) -> None:
    """Move the tensors by the losses that `make` gives."""
    optimizer = torch.optim.Adam([weight for weight, _ in tensors], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(make()().mean())
        optimizer.step()


def _restore(tensors: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> None:
    with torch.no_grad():
        for weight, base in tensors:
            weight.copy_(base)


@contextmanager
def _trainable(weights: Sequence[nn.Parameter]) -> Iterator[list[tuple[nn.Parameter, torch.Tensor]]]:
    """Give the weights gradients for the block; yield them with copies."""
    tensors = [(weight, weight.detach().clone()) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield tensors
    finally:
        _restore(tensors)
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
