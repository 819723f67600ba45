"""Transcription of recordings of any length by Whisper's long form in transformers: windows that follow timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.models.quiet import transformers_quiet
from zo_common.models.whisper.languages import whisper_code

FRAMES_A_SECOND = 100
# of OpenAI's Whisper (Radford et al. 2022, section 4.5); a compression ratio of tokens, as transformers takes it
_FALLBACK: dict[str, Any] = {
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
    "condition_on_prev_tokens": False,
}


@torch.inference_mode()
def transcribe_long(
    model: Any,
    processor: Any,
    waves: Sequence[NDArray[np.float32]],
    *,
    language: str = "en",
    on_progress: Callable[[float], None] | None = None,
) -> list[str]:
    """Transcribe mono recordings of any length at the model's rate, all in one batch.

    A window whose greedy transcript repeats itself, or is too unlikely, is decoded again at a higher temperature, from
    a random stream that is the same in each call.

    Args:
        on_progress: called from time to time with the seconds done of all recordings.
    """
    extractor = processor.feature_extractor
    inputs = extractor(
        list(waves),
        sampling_rate=extractor.sampling_rate,
        truncation=False,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    options: dict[str, Any] = {"return_timestamps": True, "num_beams": 1, **_FALLBACK}
    if model.generation_config.is_multilingual:
        options |= {"language": whisper_code(language), "task": "transcribe"}
    if on_progress is not None:
        options["monitor_progress"] = lambda p: on_progress(float(p.min(dim=1).values.sum()) / FRAMES_A_SECOND)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), transformers_quiet():
        torch.manual_seed(0)
        found = model.generate(
            inputs.input_features.to(device), attention_mask=inputs.attention_mask.to(device), **options
        )
    return [text.strip() for text in processor.batch_decode(found, skip_special_tokens=True)]
