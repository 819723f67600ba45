"""Attention sinks in the silence after the speech: positions of Whisper's window that must not be merged.

A trained encoder attends strongly to a few silent positions, whose hidden states become very large: in Whisper-base
their norm is over 500 from the fourth layer on, where the median is 16. Such a position in the middle of a merged group
would be weighted by the group's size. The positions depend on the model, and hardly on the speech before them.
Source: attention sinks and massive activations, arXiv 2309.17453 and 2402.17762.
"""

from __future__ import annotations

from typing import Any

import torch

FACTOR = 4.0
SILENCE = -1.0  # log-mel of the tail, which Whisper clips to 2 below the loudest frame: about -0.6 for a loud recording
_SINKS = "silent_sinks"


@torch.inference_mode()
def mark_sinks(model: Any) -> tuple[int, ...]:
    """Find the sinks of a base model by encoding one silent window, and store them with its encoder.

    A position is a sink if its hidden norm after any layer is more than `FACTOR` times the layer's median. Call this
    before training: sinks that changed with the weights would change the loss from step to step.
    """
    encoder = model.model.encoder
    positions = encoder.embed_positions.weight
    frames = 2 * len(positions)
    # the convolutions see one constant input
    silent = torch.full((1, model.config.num_mel_bins, frames), SILENCE, device=positions.device)
    hidden = torch.nn.functional.gelu(encoder.conv1(silent))
    hidden = torch.nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1) + positions
    found = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    for layer in encoder.layers:
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        norms = hidden[0].norm(dim=-1)
        found |= norms > FACTOR * norms.median()
    sinks = tuple(int(position) for position in found.nonzero()[:, 0])
    setattr(encoder, _SINKS, sinks)
    return sinks


def sinks_of(encoder: Any) -> tuple[int, ...]:
    """Return the positions that `mark_sinks` found; none if it was not called."""
    sinks: tuple[int, ...] = getattr(encoder, _SINKS, ())
    return sinks
