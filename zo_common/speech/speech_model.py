"""What runs, evaluations and adaptations ask of a speech model, whatever its kind."""

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
class Heard:
    """A transcript, and the text tokens it consists of, where the model has tokens."""

    text: str
    tokens: tuple[int, ...] = field(default=(), repr=False)


class WaveReader(Reader, Protocol):
    """A reader that also takes samples."""

    def of_wave(self, wave: Wave, labels: Sequence[int] = ()) -> Example:
        """An example of mono samples (n,) at the model's rate. Raises AudioProblem where they are of no use."""


class SpeechModel(Protocol):
    """A loaded model seen as one of its kind.

    Attributes:
        name: of the kind, for sentences.
        unit: what its losses are nats of.
        objectives: what it can be trained on.
        adapts_by: objectives of test-time adaptation, the first being the default; empty where there is none.
        adapts_to_silence: whether there is something to adapt to where nothing was heard.
        model, processor: as `from_pretrained` gives them, the model in eval mode.
        hears_padding: whether an utterance's logits depend on how far it was padded.
        window: positions of the encoder's window, of which speech fills a part; 0 where there is none.
        rate: of its waves, in Hz.
        least: samples that the shortest utterance must have.
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
        """How its recordings are read; one without a transcript has no labels.

        Args:
            cache_dir: folder for features.
            fold_accents: whether letters that a CTC model's vocabulary lacks are written without their accents.
        """

    def losses(self, trained: Collection[str] | None, settings: LossSettings, precision: str) -> LossOf:
        """Batch → the loss of a step under `settings.objective`; `trained` are the names of the trained tensors.

        Without `trained` nothing is kept from one forward pass to the next.

        What an objective without a text takes from the model itself, frames or hypotheses, is decided when the batch
        comes in, under the weights of that moment, and is the same in all forward passes of the step.
        """

    def episode(
        self, batch: Any, trained: Collection[str], settings: LossSettings, precision: str
    ) -> Callable[[], LossFn]:
        """Makes the losses of an adaptation's steps on one batch, whose labels are what was heard."""

    def held_out_losses(self, batch: Any) -> torch.Tensor:
        """Supervised losses (B,) in float32, nats a unit, the approximations of training left out or finer."""

    def uncertainties(self, batch: Any) -> torch.Tensor:
        """Mean entropy in nats of each example's frames or reference tokens, (B,)."""

    def transcribe(
        self,
        examples: Sequence[Any],
        *,
        language: str = "en",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Heard]:
        """Greedy transcripts under the present weights; the same examples together give the same bits.

        Args:
            on_progress: called with (utterances done, utterances in all).
        """

    def compile(self) -> None:
        """`torch.compile` of its layers. Raises ConfigError where there is none."""
        raise ConfigError(f"torch-compile is for Whisper models, this is a {self.name} model: leave it off")
