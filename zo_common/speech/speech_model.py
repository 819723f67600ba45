"""Interface of all kinds of speech models for runs, evaluations and adaptations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import ConfigError
from zo_common.estimator.step import LossFn
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.recordings import Example, Reader

Wave = NDArray[np.float32]
LossOf = Callable[[Any], LossFn]


@dataclass(frozen=True)
class Transcript:
    """A transcript, and its text tokens if the model has tokens."""

    text: str
    tokens: tuple[int, ...] = field(default=(), repr=False)


class WaveReader(Reader, Protocol):
    """A reader that also accepts samples."""

    def of_wave(self, wave: Wave, labels: Sequence[int] = ()) -> Example:
        """Return an example of mono samples (n,) at the model's rate. Raises AudioProblem for unusable ones."""


class SpeechModel(Protocol):
    """A loaded model with the operations of its kind.

    Attributes:
        name: of the kind, for messages.
        unit: "token" or "character": losses are in nats per unit.
        objectives: supported objectives of training.
        adapts_by: objectives of test-time adaptation, the default first; empty if there are none.
        adapts_to_silence: whether it can adapt to an utterance with an empty transcript.
        model, processor: from `from_pretrained`, the model in eval mode.
        hears_padding: whether an utterance's logits depend on its padding.
        window: positions of the encoder's window, which speech fills in part; 0 without a window.
        rate: of its waves, in Hz.
        least: minimum samples of an utterance.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    objectives: ClassVar[tuple[str, ...]]
    adapts_by: ClassVar[tuple[str, ...]]
    adapts_to_silence: ClassVar[bool]
    model: Any
    processor: Any
    hears_padding: bool
    window: int
    rate: int
    least: int

    def reader(self, *, language: str = "en", cache_dir: Path | None = None, fold_accents: bool = False) -> WaveReader:
        """Return a reader of its recordings; one without a transcript has no labels.

        Args:
            cache_dir: folder for features.
            fold_accents: replace letters that a CTC model's vocabulary lacks by those without accents.
        """

    def losses(self, trained: Collection[str] | None, settings: LossSettings, precision: str) -> LossOf:
        """Return a function from a batch to its loss under `settings.objective`; `trained` names the trained tensors.

        With `trained` None, nothing is reused from one forward pass to the next.

        Objectives without a text choose their frames or hypotheses under the weights at that call, and use them in all
        forward passes of the step.
        """

    def episode(
        self, batch: Any, trained: Collection[str], settings: LossSettings, precision: str
    ) -> Callable[[], LossFn]:
        """Return a maker of step losses for an adaptation on one batch, whose labels are the model's transcripts."""

    def held_out_losses(self, batch: Any) -> torch.Tensor:
        """Return supervised losses (B,) in float32, nats per unit, with finer approximations than training or none."""

    def uncertainties(self, batch: Any) -> torch.Tensor:
        """Return the mean entropy in nats of each example's frames or reference tokens, (B,)."""

    def transcribe(
        self,
        examples: Sequence[Any],
        *,
        language: str = "en",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Transcript]:
        """Return greedy transcripts under the present weights; the same list of examples gives the same bits.

        Args:
            on_progress: called with (utterances done, total).
        """

    def compile(self) -> None:
        """Apply `torch.compile` to its layers. Raises ConfigError if the kind does not support it."""
        raise ConfigError(f"torch-compile is for Whisper models, this is a {self.name} model: leave it off")
