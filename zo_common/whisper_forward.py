"""Whisper's teacher-forced forward pass on a window trimmed to the speech, for any `WhisperForConditionalGeneration`.

Whisper is trained and decoded on 30 s windows, most of which is silence for a short utterance. Cutting the window
changes the model's behaviour (it has never seen a window without its silent tail); computing all 1500 positions costs
six times the speech. In the silent tail all encoder inputs are one constant vector plus a position embedding, so
each group of neighbouring tail positions is represented by its middle one, weighted in every attention by the number
of positions it stands for: + log(count) on its logit (proportional attention, ToMe, arXiv 2210.09461).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

EDGE_POSITIONS = 2  # encoder positions at a cut whose convolutions would see the zero padding


@dataclass(frozen=True)
class EncoderStates:
    """Encoder output (B, S, d_model) and the attention bias of its positions, (1, 1, 1, S) or None."""

    hidden: torch.Tensor
    bias: torch.Tensor | None


def embed_window(encoder: Any, features: torch.Tensor, tail_tokens: int) -> EncoderStates:
    """Encoder inputs of a trimmed mel window.

    Args:
        features: log-mel (B, n_mels, T), T even; shorter than the full window, it ends in at least 8 frames of silence.
        tail_tokens: how many tokens stand for the silent rest of the window; 0 cuts it off.
    """
    x = F.gelu(encoder.conv1(features))
    x = F.gelu(encoder.conv2(x)).permute(0, 2, 1)
    positions = encoder.embed_positions.weight
    full = positions.shape[0]
    if x.shape[1] >= full or tail_tokens == 0:
        return EncoderStates(x + positions[: x.shape[1]], None)
    keep = x.shape[1] - EDGE_POSITIONS
    silence, last = x[:, keep - 1 : keep], x[:, -1:]  # the last position of any window sees the zero padding behind it
    edges = torch.linspace(keep, full - 1, min(tail_tokens, full - 1 - keep) + 1).long()
    counts = edges.diff()
    middle = positions[((edges[1:] + edges[:-1]) // 2).to(positions.device)]
    hidden = torch.cat([x[:, :keep] + positions[:keep], silence + middle, last + positions[-1:]], dim=1)
    bias = F.pad(counts.to(x).log(), (keep, 1))
    return EncoderStates(hidden, bias[None, None, None, :])


def run_layers(encoder: Any, states: EncoderStates, first: int, last: int) -> EncoderStates:
    """Encoder layers first … last−1, without the final norm."""
    hidden = states.hidden
    for layer in encoder.layers[first:last]:
        hidden = layer(hidden, states.bias)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return EncoderStates(hidden, states.bias)


def encode(model: Any, features: torch.Tensor, tail_tokens: int) -> EncoderStates:
    """Encoder states of a trimmed window; see `embed_window` for the arguments."""
    encoder = model.model.encoder
    states = run_layers(encoder, embed_window(encoder, features, tail_tokens), 0, len(encoder.layers))
    return EncoderStates(encoder.layer_norm(states.hidden), states.bias)


def decode(model: Any, decoder_input_ids: torch.Tensor, states: EncoderStates) -> torch.Tensor:
    """Teacher-forced decoder output (B, L, d_model), before the vocabulary projection `model.proj_out`.

    Right padding needs no mask: self-attention is causal.
    """
    decoder = model.model.decoder
    length = decoder_input_ids.shape[1]
    hidden = decoder.embed_tokens(decoder_input_ids) + decoder.embed_positions.weight[:length]
    causal = torch.full((length, length), float("-inf"), device=hidden.device, dtype=hidden.dtype).triu(1)
    for layer in decoder.layers:
        hidden = layer(
            hidden,
            attention_mask=causal[None, None],
            encoder_hidden_states=states.hidden,
            encoder_attention_mask=states.bias,
            use_cache=False,
        )
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    output: torch.Tensor = decoder.layer_norm(hidden)
    return output
