"""Raw waveforms → frame logits of a Wav2Vec2, HuBERT or WavLM model with a CTC head.

Padding is handled as each family was trained. Where the first convolution has a group norm (`feat_extract_norm` is
"group": base models), padding is zeros and there is no attention mask: the statistics of that norm, and so the logits
of an utterance, depend on how far it was padded. Where all convolutions have layer norms ("layer": large models), the
model is told the mask, and padding changes nothing but the last bits. In neither family are an utterance's *bits*
independent of who else is in the batch; compare two evaluations of the same batch only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.errors import DataError


def prepare_waves(extractor: Any, waves: Sequence[NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms as the model wants them: values float32 (B, N), padded with zeros, and their lengths int64 (B,).

    Each one is normalised by itself, if the extractor normalises. (An extractor that is given a list to pad, and makes
    no attention mask, takes mean and variance over the padding too.)

    Args:
        extractor: a `Wav2Vec2FeatureExtractor`.
        waves: mono, at the extractor's sampling rate, float32 (samples,) each.
    """
    rate = extractor.sampling_rate
    values = [extractor(wave, sampling_rate=rate, return_tensors="np").input_values[0] for wave in waves]
    lengths = torch.tensor([len(value) for value in values], dtype=torch.int64)
    padded = torch.zeros(len(values), int(lengths.max()))
    for row, value in enumerate(values):
        padded[row, : len(value)] = torch.from_numpy(value)
    return padded, lengths


def receptive_field(config: Any) -> int:
    """Samples that a frame sees, the least that make one: 400, 25 ms at 16 kHz, in all published models."""
    samples = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * int(stride) + int(kernel)
    return samples


def frame_lengths(model: Any, lengths: torch.Tensor) -> torch.Tensor:
    """Frames, int64 (B,), that the model makes of lengths (B,) in samples.

    Raises:
        DataError: an utterance is too short for a single frame.
    """
    frames: torch.Tensor = model._get_feat_extract_output_lengths(lengths).to(torch.int64)
    least = receptive_field(model.config)
    short = [
        row for row, (n, t) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)) if n < least or t < 1
    ]
    if short:
        raise DataError(
            [
                f"utterance {row} of the batch has {int(lengths[row])} samples, the model needs at least {least} for "
                "one frame: leave it out"
                for row in short
            ]
        )
    return frames


def uses_attention_mask(config: Any) -> bool:
    """Whether a model was trained with attention masks: its convolutions have layer norms, not one group norm."""
    return bool(config.feat_extract_norm == "layer")


def ctc_logits(model: Any, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, T, V) and frame lengths int64 (B,) of what `prepare_waves` made.

    Raises:
        DataError: an utterance is too short for a single frame.
    """
    frames = frame_lengths(model, lengths)
    mask = None
    if uses_attention_mask(model.config):
        mask = (torch.arange(values.shape[1], device=values.device) < lengths[:, None]).to(torch.int64)
    logits: torch.Tensor = model(values, attention_mask=mask).logits
    return logits, frames
