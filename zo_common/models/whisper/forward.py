"""Whisper's teacher-forced forward pass on a window trimmed to the speech, for any `WhisperForConditionalGeneration`.

Whisper is trained and decoded on 30 s windows, most of which is silence for a short utterance. Cutting the window
changes the model's behaviour (it has never seen a window without its silent tail); computing all 1500 positions costs
six times the speech. In the silent tail all encoder inputs are one constant vector plus a position embedding, so

1. in the first layer the speech, and the representatives of the tail, attend to all positions of the window: this
   layer attends by position, and merging its keys would cause most of the loss in accuracy;
2. after it, each group of neighbouring tail positions is represented by its middle one, weighted in every attention
   by the number of positions in the group: + log(count) on its logit (proportional attention, ToMe,
   arXiv 2210.09461);
3. attention sinks (`silent_tail`) stay tokens of their own: one in the middle of a group would count for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from zo_common.models.whisper.silent_tail import sinks_of

EDGE_POSITIONS = 2  # encoder positions at a cut whose convolutions would see the zero padding


@dataclass(frozen=True)
class TailMerge:
    """Positions of the window that the layers after the first keep, (S,), and their bias (1, 1, 1, S)."""

    picked: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class EncoderStates:
    """Encoder output (B, S, d_model) and the attention bias of its positions, (1, 1, 1, S) or None.

    Before the first layer `merge` says how that layer merges the tail; None where there is nothing to merge. Within a
    layer, `attended` is the input of its attention's output projection, (B, S, d_model).
    """

    hidden: torch.Tensor
    bias: torch.Tensor | None = None
    merge: TailMerge | None = None
    attended: torch.Tensor | None = None


def embed_window(encoder: Any, features: torch.Tensor, tail_tokens: int) -> EncoderStates:
    """Return encoder inputs of the full window that a trimmed mel window starts.

    Args:
        features: log-mel (B, n_mels, T), T even; shorter than the full window, it ends in at least 8 frames of silence.
        tail_tokens: number of groups that the silent rest is merged to, besides attention sinks; 0 cuts it off.
    """
    x = F.gelu(encoder.conv1(features))
    x = F.gelu(encoder.conv2(x)).permute(0, 2, 1)
    positions = encoder.embed_positions.weight
    full = positions.shape[0]
    if x.shape[1] >= full or tail_tokens == 0:
        return EncoderStates(x + positions[: x.shape[1]])
    keep = x.shape[1] - EDGE_POSITIONS
    silence, last = x[:, keep - 1 : keep], x[:, -1:]  # the last position of any window sees the zero padding behind it
    window = torch.cat([x[:, :keep], silence.expand(-1, full - 1 - keep, -1), last], dim=1)
    return EncoderStates(window + positions, merge=_merge(keep, full, tail_tokens, sinks_of(encoder), x))


def _merge(keep: int, full: int, tail_tokens: int, sinks: tuple[int, ...], like: torch.Tensor) -> TailMerge:
    """Keep positions before `keep`, the last one and sinks between them, and merge the rest in groups."""
    own = [position for position in sinks if keep <= position < full - 1]
    kept = torch.ones(full, dtype=torch.bool)
    kept[keep : full - 1] = False
    kept[own] = True
    rest = (~kept).nonzero()[:, 0]
    edges = torch.linspace(0, len(rest), min(tail_tokens, len(rest)) + 1).long()
    middle = rest[(edges[1:] + edges[:-1]) // 2]
    counts = torch.ones(full)
    counts[middle] = edges.diff().float()
    picked = torch.cat([kept.nonzero()[:, 0], middle]).sort().values
    return TailMerge(picked.to(like.device), counts[picked].log().to(like)[None, None, None, :])


def run_layers(encoder: Any, states: EncoderStates, first: int, last: int) -> EncoderStates:
    """Run encoder layers first … last−1, without the final norm; after `attend`, only the rest of the first."""
    if first < last and states.attended is not None:
        states, first = _behind_attention(encoder.layers[first], states, states.attended), first + 1
    elif first == 0 < last and states.merge is not None:
        states, first = _merging_layer(encoder.layers[0], states.hidden, states.merge), 1
    hidden = states.hidden
    for layer in encoder.layers[first:last]:
        hidden = layer(hidden, states.bias)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return EncoderStates(hidden, states.bias, states.merge)


def attend(layer: Any, states: EncoderStates) -> EncoderStates:
    """Run a `WhisperEncoderLayer` up to its attention's output projection; `run_layers` continues from there."""
    seen = layer.self_attn_layer_norm(states.hidden)
    if states.merge is None:
        attended = _attended(layer.self_attn, seen, attention_mask=states.bias)
        return EncoderStates(states.hidden, states.bias, None, attended)
    picked = states.merge.picked
    attended = _attended(layer.self_attn, seen[:, picked], key_value_states=seen)
    return EncoderStates(states.hidden[:, picked], states.merge.bias, None, attended)


def _attended(attention: Any, query: torch.Tensor, **others: torch.Tensor | None) -> torch.Tensor:
    inputs: list[torch.Tensor] = []
    with attention.out_proj.register_forward_pre_hook(lambda module, seen: inputs.append(seen[0])):
        attention(query, **others)
    return inputs[0]


def _behind_attention(layer: Any, states: EncoderStates, attended: torch.Tensor) -> EncoderStates:
    """Run the rest of a `WhisperEncoderLayer`."""
    return EncoderStates(_feed_forward(layer, states.hidden + layer.self_attn.out_proj(attended)), states.bias)


def _merging_layer(layer: Any, hidden: torch.Tensor, merge: TailMerge) -> EncoderStates:
    """Run a `WhisperEncoderLayer` with attention to all positions but output at the picked ones alone."""
    seen = layer.self_attn_layer_norm(hidden)
    attended = layer.self_attn(seen[:, merge.picked], key_value_states=seen)[0]
    return EncoderStates(_feed_forward(layer, hidden[:, merge.picked] + attended), merge.bias)


def _feed_forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
    return hidden + added


def encode(model: Any, features: torch.Tensor, tail_tokens: int) -> EncoderStates:
    """Return encoder states of a trimmed window; see `embed_window` for the arguments."""
    encoder = model.model.encoder
    states = run_layers(encoder, embed_window(encoder, features, tail_tokens), 0, len(encoder.layers))
    return EncoderStates(encoder.layer_norm(states.hidden), states.bias)


def decode(model: Any, decoder_input_ids: torch.Tensor, states: EncoderStates) -> torch.Tensor:
    """Return the teacher-forced decoder output (B, L, d_model), before the vocabulary projection `model.proj_out`.

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
