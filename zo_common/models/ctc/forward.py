"""Waveforms → frame logits of a model with a CTC head, of any class that transformers registers for CTC.

The inputs of a class (samples or log-mel features) and their names are found from its feature extractor and its
`forward`; the number of frames comes from the class's own method.

Padding is handled as each class was trained. Where the first convolution has a group norm (`feat_extract_norm` is
"group": base models), padding is zeros and there is no attention mask: the statistics of that norm, and so the logits
of an utterance, depend on the length of the padding. All others receive the mask, and padding changes only the last
bits. In both cases an utterance's *bits* depend on the rest of the batch; only compare evaluations of the same batch.
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
    """Return the model's padded inputs for waveforms, and their lengths int64 (B,) in samples or feature frames.

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
    """Return whether an extractor changes at most the scale of samples."""
    return type(extractor).__name__ == "Wav2Vec2FeatureExtractor"


def receptive_field(config: Any) -> int:
    """Return the receptive field of a frame in samples, which is also the shortest input: 400 in published models.

    For a model of features it is 1 feature frame.
    """
    samples = 1
    config = getattr(config, "audio_config", config)
    kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        samples = (samples - 1) * int(stride) + int(kernel)
    return samples


def frames_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the method of a CTC class that computes the number of frames from lengths in samples or features."""
    found: Callable[[torch.Tensor], torch.Tensor] = next(getattr(model, n) for n in _LENGTHS if hasattr(model, n))
    return found


def frame_lengths(model: Any, lengths: torch.Tensor) -> torch.Tensor:
    """Return the model's number of frames, int64 (B,), for lengths (B,) in samples or feature frames.

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
    """Return whether a model was trained with attention masks: its first convolution has no group norm."""
    return bool(getattr(config, "feat_extract_norm", "layer") == "layer")


def ctc_logits(model: Any, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (B, T, V) and frame lengths int64 (B,) for the output of `prepare_waves`.

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
