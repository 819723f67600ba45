"""The part of Whisper's encoder before all trained tensors, computed once per batch instead of per forward pass.

If only decoder tensors are trained, this is the whole encoder, most of a forward pass: its states are computed once
for every utterance and reused by all passes of the step. If biases of modules that write to the residual stream are
trained, it is the part before the first of them: convolutions and the first layer's attention, to the whole window.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from zo_common.models.whisper.forward import EncoderStates, attend, embed_window, run_layers

_ENCODER = "model.encoder."
_BEHIND_ATTENTION = ("self_attn.out_proj.", "final_layer_norm.", "fc1.", "fc2.")


class FrozenPrefix:
    """The stages of the encoder that no perturbation changes, and the two halves of an encoder pass.

    The stages are: 0 embeds the window (convolutions, positions), 1 … L are the layers, L+1 is the final norm. Stages
    before the first one that has a trained tensor are frozen; none, if a name is not Whisper's. If all trained tensors
    of a layer come after its attention, the attention is frozen, too.

    Args:
        model: a `WhisperForConditionalGeneration`.
        trained: names of the trained tensors; None for any: then nothing is frozen.
    """

    def __init__(self, model: Any, trained: Collection[str] | None) -> None:
        self._encoder = model.model.encoder
        self._layers = len(self._encoder.layers)
        if trained is None:
            self.stages, self._half = 0, False
            return
        touched = [self._stage(name) for name in trained if name.startswith(_ENCODER)]
        known = all(name.startswith(("model.", "proj_out.")) for name in trained)
        self.stages = min(touched, default=self._layers + 2) if known else 0
        layer = f"{_ENCODER}layers.{self.stages - 1}."
        first = [name.removeprefix(layer) for name in trained if name.startswith(layer)]
        self._half = 0 < self.stages <= self._layers and all(name.startswith(_BEHIND_ATTENTION) for name in first)

    def _stage(self, name: str) -> int:
        part = name.removeprefix(_ENCODER)
        if part.startswith("layers."):
            return 1 + int(part.split(".")[1])
        return self._layers + 1 if part.startswith("layer_norm.") else 0

    def start(self, features: torch.Tensor, tail_tokens: int) -> EncoderStates:
        """Return the output of all frozen stages, at least one, for log-mel features (B, n_mels, T)."""
        assert self.stages > 0
        states = run_layers(self._encoder, embed_window(self._encoder, features, tail_tokens), 0, self.stages - 1)
        if self._half:
            return attend(self._encoder.layers[self.stages - 1], states)
        return self._norm(states) if self.stages > self._layers + 1 else states

    def finish(self, start: EncoderStates) -> EncoderStates:
        """Return the encoder states under the present weights, from the output of `start`."""
        if self.stages > self._layers + 1:
            return start
        return self._norm(run_layers(self._encoder, start, self.stages - 1, self._layers))

    def _norm(self, states: EncoderStates) -> EncoderStates:
        return EncoderStates(self._encoder.layer_norm(states.hidden), states.bias)
