"""Optional `torch.compile` of Whisper's layers: their names, weights and places in memory stay what they are."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from zo_common.errors import ConfigError


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile would call."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile every encoder and decoder layer in place, for batches of any length.

    Layers of one kind share their code, so this compiles a handful of graphs whatever the model's depth, at the first
    forward passes. Weights are inputs of the graphs: the lattice goes on moving them in place.

    Raises:
        ConfigError: torch would generate C++ for this processor, and there is no compiler.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if backend == "inductor" and on_cpu and not has_compiler():
        raise ConfigError("torch-compile needs a C++ compiler on a CPU and found none: install g++, or leave it off")
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # a layer's index is no reason to compile it again
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        layer.compile(dynamic=True, backend=backend)
