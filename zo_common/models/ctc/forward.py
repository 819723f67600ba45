"""Waveforms → frame logits of a model with a CTC head, of any class that transformers registers for CTC.

What a class takes, samples or log-mel features, and under which names, is asked of its feature extractor and its
`forward`; how many frames it makes of them, of the class's own method.

Padding is handled as each class was trained. Where the first convolution has a group norm (`feat_extract_norm` is
"group": base models), padding is zeros and there is no attention mask: the statistics of that norm, and so the logits
of an utterance, depend on how far it was padded. All others are told the mask, and padding changes nothing but the last
bits. In neither are an utterance's *bits* independent of who else is in the batch; compare two evaluations of the same
batch only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import DataError

_LENGTHS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
_MASKS = ("attention_mask", "padding_mask")


def prepare_waves(extractor: Any, waves: Sequence[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms as the model wants them, padded, and their lengths int64 (B,) in samples or feature frames.

    Samples, float32 (B, N) or (B, 1, N), are normalised each utterance by itself, if the extractor normalises. (A
    `Wav2Vec2FeatureExtractor` that is given a list to pad, and makes no attention mask, takes mean and variance over
    the padding too.) Log-mel features are float32 (B, T, F).

    Args:
        extractor: the processor's `feature_extractor`.
        waves: mono, at the extractor's sampling rate, float32 (samples,) each.
    """
    rate = extractor.sampling_rate
    if not takes_samples(extractor):
        made = extractor(list(waves), sampling_rate=rate, padding=True, return_attention_mask=True, return_tensors="pt")
        mask = next(made[name] for name in _MASKS if name in made)
        return made[extractor.model_input_names[0]].float(), mask.sum(dim=-1).to(torch.int64)
    values = [extractor(wave, sampling_rate=rate, return_tensors="np").input_values[0] for wave in waves]
    lengths = torch.tensor([len(value) for value in values], dtype=torch.int64)
    padded = torch.zeros(len(values), int(lengths.max()))
    for row, value in enumerate(values):
        padded[row, : len(value)] = torch.from_numpy(value)
    return padded, lengths


def takes_samples(extractor: Any) -> bool:
    """Whether an extractor leaves samples as they are, but for their scale."""
    return type(extractor).__name__ == "Wav2Vec2FeatureExtractor"


def receptive_field(config: Any) -> int:
    """Samples that a frame sees, the least that make one: 400, 25 ms at 16 kHz, in all published models.

    Of a model that takes features it is 1 feature frame.
    """
    samples = 1
    config = getattr(config, "audio_config", config)
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        samples = (samples - 1) * int(stride) + int(kernel)
    return samples


def frames_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The method of a class with a CTC head that says how many frames it makes of lengths in samples or features."""
    found: Callable[[torch.Tensor], torch.Tensor] = next(getattr(model, n) for n in _LENGTHS if hasattr(model, n))
    return found


def frame_lengths(model: Any, lengths: torch.Tensor) -> torch.Tensor:
    """Frames, int64 (B,), that the model makes of lengths (B,) in samples or feature frames.

    Raises:
        DataError: an utterance is too short for a single frame.
    """
    frames: torch.Tensor = frames_of(model)(lengths).to(torch.int64)
    least = receptive_field(model.config)
    short = [
        row for row, (n, t) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)) if n < least or t < 1
    ]
    if short:
        unit, needed = ("samples", f"at least {least}") if least > 1 else ("frames of features", "more")
        raise DataError(
            [
                f"utterance {row} of the batch has {int(lengths[row])} {unit}, the model needs {needed} for "
                "one frame: leave it out"
                for row in short
            ]
        )
    return frames


def uses_attention_mask(config: Any) -> bool:
    """Whether a model was trained with attention masks: its first convolution has no group norm."""
    return bool(getattr(config, "feat_extract_norm", "layer") == "layer")


def ctc_logits(model: Any, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, T, V) and frame lengths int64 (B,) of what `prepare_waves` made.

    Raises:
        DataError: an utterance is too short for a single frame.
    """
    frames = frame_lengths(model, lengths)
    masks = {}
    if uses_attention_mask(model.config):
        steps = values.shape[1] if model.main_input_name == "input_features" else values.shape[-1]
        mask = (torch.arange(steps, device=values.device) < lengths[:, None]).to(torch.int64)
        masks = {name: mask for name in inspect.signature(model.forward).parameters if name in _MASKS}
    logits: torch.Tensor = model(values, **masks).logits
    return logits, frames
