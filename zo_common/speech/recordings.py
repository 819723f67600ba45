"""Speech for any kind of model: checked examples, batches of similar length, all problems together."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import ConfigError, DataError
from zo_common.speech.conversions import counted
from zo_common.speech.manifest import Manifest, Utterance, read_manifest

logger = logging.getLogger(__name__)
BUCKET_BATCHES = 2  # with one, an utterance would always be in a batch with the same others


@dataclass(frozen=True, eq=False)
class Example:
    """One utterance in the form of its model's input.

    Attributes:
        features: float32 (channels, length): input of a batch.
        seconds: of speech.
        text: the reference, stripped; empty without one.
        labels: the reference in the model's tokens or characters.
        where: its row in the table.
    """

    features: torch.Tensor = field(repr=False)
    seconds: float
    text: str
    labels: tuple[int, ...]
    where: str


@dataclass(frozen=True, eq=False)
class WaveExample(Example):
    """One utterance whose features are its samples, float32 (1, N)."""

    @property
    def wave(self) -> NDArray[np.float32]:
        """The samples, (N,)."""
        samples: NDArray[np.float32] = self.features[0].numpy()
        return samples


class Recordings(ABC):
    """Checked examples of one device; each kind of model defines its batches.

    Attributes:
        skipped: faults of each recording that was left out, one text each.
    """

    examples: tuple[Any, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()  # to be reported once in a training

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Any:
        """Return the model's inputs for some of the examples."""

    def whole_batch(self, indices: Sequence[int]) -> Any:
        """As `batch`, in the model's full window if it has one."""
        return self.batch(indices)

    def some(self, chosen: slice) -> Recordings:
        """Return a data set of some of the examples."""
        changed: Any = self
        part: Recordings = replace(changed, examples=self.examples[chosen])
        return part

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def seconds(self) -> float:
        """Seconds of audio in all examples."""
        return float(sum(example.seconds for example in self.examples))

    @property
    def texts(self) -> tuple[str, ...]:
        """Reference texts, stripped."""
        return tuple(example.text for example in self.examples)

    def length_sorted_batches(self, size: int) -> list[list[int]]:
        """Return indices of all examples in groups of `size`, longest first, so that batches have little padding."""
        if size < 1:
            raise ConfigError(f"The batch size is {size}, expected a positive number, such as 16.")
        order = self._longest_first
        return [order[start : start + size] for start in range(0, len(order), size)]

    def draw(self, size: int, generator: np.random.Generator) -> list[int]:
        """Draw a random batch without replacement, of utterances of similar length, with little padding.

        1. Sorted by length, the examples are cut into buckets of at least `BUCKET_BATCHES` batches.
        2. A bucket is drawn in proportion to its size, then the batch from it, so all examples are equally likely.
        """
        count = max(1, len(self) // (BUCKET_BATCHES * size))
        bucket: Sequence[int] = range(len(self))
        if count > 1:
            place = int(generator.integers(len(self))) * count // len(self)
            bounds = [-(-len(self) * b // count) for b in (place, place + 1)]
            bucket = sorted(self._longest_first[bounds[0] : bounds[1]])
        return sorted(bucket[int(i)] for i in generator.permutation(len(bucket))[:size])

    @cached_property
    def _longest_first(self) -> list[int]:
        return sorted(range(len(self)), key=lambda index: (-self.examples[index].features.shape[1], index))


class Reader(Protocol):
    """Reader of recordings for a kind of model."""

    def example(self, utterance: Utterance) -> Example | list[str]:
        """Return the example, or all its faults."""

    def recordings(self, examples: tuple[Any, ...], skipped: tuple[str, ...]) -> Recordings:
        """Return examples of this reader as a data set."""


def read_speech(
    source: str | Manifest,
    reader: Reader,
    *,
    split: str | None = None,
    text_column: str = "transcription",
    skip_bad: bool = False,
    keep: Callable[[Utterance], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recordings:
    """Read, decode and check every utterance that `keep` accepts.

    Args:
        source: folder or hub id, as for `read_manifest`, or its result.
        reader: a kind of model's reader.
        progress: called with the utterances done and their total.

    Raises:
        DataError: there are faults, without `skip_bad` (the error has those of all rows); or no utterance is left.
        ConfigError: the reader's settings do not fit.
    """
    manifest = read_manifest(source, split=split, text_column=text_column) if isinstance(source, str) else source
    wanted = [utterance for utterance in manifest.utterances if keep is None or keep(utterance)]
    examples: list[Example] = []
    problems = list(manifest.problems)
    left_out = [*manifest.faults, *(" ".join(row.problems) for row in manifest.left_out)]
    with counted() as changes:
        for done, utterance in enumerate(wanted, 1):
            example = reader.example(utterance)
            if isinstance(example, list):
                faults = [f"{utterance.where}: {fault}" for fault in example]
                problems.extend(faults)
                left_out.append(" ".join(faults))
            else:
                examples.append(example)
            if progress is not None:
                progress(done, len(wanted))
    if changes.note:
        logger.info(changes.note)
    if problems and not skip_bad:
        raise DataError(problems)
    if not examples:
        chosen = f"{len(wanted)} of {len(manifest.utterances)} readable rows were chosen"
        raise DataError([*problems, f"No utterance is left to train on ({chosen}): correct the data or the choice."])
    return reader.recordings(tuple(examples), tuple(left_out))


def evenly(data: Recordings, most: int) -> Recordings:
    """Return `most` examples at even distances, for the guard; all if there are no more, or `most` is 0."""
    count = len(data)
    if not most or count <= most:
        return data
    chosen: Any = data
    kept: Recordings = replace(chosen, examples=tuple(data.examples[i * count // most] for i in range(most)))
    return kept


def spread(data: Recordings, count: int) -> Recordings:
    """Return at most `count` examples at even distances, as tables are often sorted by speaker."""
    step = max(1, -(-len(data) // count))
    return data.some(slice(None, None, step))
