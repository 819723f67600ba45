"""Every utterance's own scalars along every direction, measured once by the code that devices run.

A device's scalars are means of its utterances' scalars. From the same weights nothing else enters them, so devices,
batches and cohorts can be put together from this table as often as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.attacks.settings import Settings
from benchmarks.attacks.speech import Speech
from client.device.engine import Engine
from client.device.private_steps import SeparateLosses
from zo_common.directions.seeds import direction_seed, shared_seed
from zo_common.estimator.step import LossFn, Walker, measure
from zo_common.models.ctc.forward import ctc_logits
from zo_common.models.ctc.loss import CTCBatch, blank_of
from zo_common.models.ctc.objectives import ctc_losses
from zo_common.models.objectives import IGNORE
from zo_common.speech.ctc import CTCDataset

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Scalars and mean loss of each column, float64 (R, q + 1, columns): the loss is the last row of a round.

    Attributes:
        pool: the population's columns.
        echoes: the same sentences in other voices.
        guesses: (R, q + 1, targets, candidates): a target's recording with each candidate for its transcript.
    """

    pool: Array
    echoes: Array
    guesses: Array


class _Seen:
    """A loss function that keeps what it returned; the columns of all `parts` side by side."""

    def __init__(self, parts: list[LossFn]) -> None:
        self._parts = parts
        self.losses: list[Array] = []

    def __call__(self) -> torch.Tensor:
        values = torch.cat([part().double() for part in self._parts])
        self.losses.append(values.numpy().copy())
        return values


class CandidateTexts:
    """The losses of one recording under each candidate transcript, from one forward pass, (candidates,)."""

    def __init__(self, model: Any, batch: CTCBatch, labels: torch.Tensor) -> None:
        self._model, self._batch, self._labels = model, batch, labels
        self._lengths = (labels != IGNORE).sum(dim=1)

    def __call__(self) -> torch.Tensor:
        logits, frames = ctc_logits(self._model, self._batch.values, self._batch.lengths)
        count = len(self._labels)
        repeated = logits.expand(count, -1, -1)
        return ctc_losses(repeated, frames.expand(count), self._labels, self._lengths, blank_of(self._model))


def round_seed(seed: int, server_round: int) -> int:
    """Return the seed of a round's shared directions in the run of a seed; rounds count from 1."""
    return shared_seed(seed, server_round)


@torch.inference_mode()
def measure_round(engine: Engine, speech: Speech, settings: Settings, seed: int, server_round: int) -> Table:
    """Return one round's part of the table, R = 1; the engine's weights are as before."""
    count = settings.candidates
    labels = speech.pool.batch(range(count)).labels
    parts = [_alone(engine, speech.pool), _alone(engine, speech.echoes)]
    parts += [CandidateTexts(engine.model, speech.pool.batch([i]), labels) for i in range(settings.targets)]
    seen, walker = _Seen(parts), Walker(engine.state, settings.epsilon)
    directions = [direction_seed(round_seed(seed, server_round), 0, j) for j in range(settings.queries)]
    try:
        result = measure(walker, seen, directions, settings.estimator)
    finally:
        walker.move(None)
    rows = np.concatenate([result.per_example, np.mean(seen.losses, axis=0)[None]])[None]
    pool, echoes, guesses = np.split(rows, [len(speech.pool), len(speech.pool) + len(speech.echoes)], axis=2)
    return Table(pool, echoes, guesses.reshape(1, len(rows[0]), settings.targets, count))


def _alone(engine: Engine, data: CTCDataset) -> LossFn:
    return SeparateLosses([engine.loss_fn(data.batch([index])) for index in range(len(data))])


def joined(rounds: list[Table]) -> Table:
    """Return the rounds joined in order."""
    return Table(*(np.concatenate([getattr(r, name) for r in rounds]) for name in ("pool", "echoes", "guesses")))
