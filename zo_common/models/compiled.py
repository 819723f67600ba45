"""Optional `torch.compile` of Whisper's layers, which keeps their names, weights and memory addresses."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from zo_common.errors import ConfigError


def has_compiler() -> bool:
    """Return whether the C++ compiler that torch.compile needs is installed."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile every encoder and decoder layer in place, for batches of any length.

    Layers of one kind share their code, so the first forward passes compile only a few graphs, whatever the model's
    depth. Weights are inputs of the graphs, so the lattice can still update them in place.

    Raises:
        ConfigError: torch would generate C++ for this processor, and there is no compiler.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if backend == "inductor" and on_cpu and not has_compiler():
        raise ConfigError("torch-compile needs a C++ compiler on a CPU and found none: install g++, or leave it off")
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # a layer's index is no reason to compile it again
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        layer.compile(dynamic=True, backend=backend)
