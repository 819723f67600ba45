"""Optional `torch.compile` of Whisper's layers: their names, weights and places in memory stay what they are."""

from __future__ import annotations

from typing import Any

import torch


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile every encoder and decoder layer in place, for batches of any length.

    Layers of one kind share their code, so this compiles a handful of graphs whatever the model's depth, at the first
    forward passes. Weights are inputs of the graphs: the lattice goes on moving them in place.
    """
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # a layer's index is no reason to compile it again
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        layer.compile(dynamic=True, backend=backend)
