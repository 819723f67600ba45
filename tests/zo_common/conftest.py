"""Fixtures of the method's tests: the expected values of exact-ZO v1 and small modules to move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

GOLDEN = Path(__file__).parent.parent / "golden" / "exact_zo_v1.json"

ModuleFactory = Callable[..., nn.Module]
WeightReader = Callable[[nn.Module], dict[str, bytes]]


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Expected values of exact-ZO v1."""
    values: dict[str, Any] = json.loads(GOLDEN.read_text())
    return values


@pytest.fixture(scope="session")
def module_of() -> ModuleFactory:
    """Builds a module with parameters of the given dotted names and values."""

    def build(**tensors: torch.Tensor) -> nn.Module:
        root = nn.Module()
        for name, value in tensors.items():
            owner = root
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(value.clone()))
        return root

    return build


@pytest.fixture(scope="session")
def small_model() -> ModuleFactory:
    """Builds the same small network for the same seed: odd sizes, weights of different magnitude."""

    def build(seed: int = 0, inputs: int = 3, hidden: int = 11, outputs: int = 2) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.LayerNorm(hidden), nn.Linear(hidden, outputs, bias=False)
        )
        for index, parameter in enumerate(model.parameters()):
            scale = (0.5, 0.1, 1.0, 0.05, 0.4)[index]
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        return model

    return build


@pytest.fixture(scope="session")
def weight_bytes() -> WeightReader:
    """Reads all parameters as bytes: equal dictionaries mean equal bits."""

    def read(model: nn.Module) -> dict[str, bytes]:
        return {name: np.ascontiguousarray(p.detach().numpy()).tobytes() for name, p in model.named_parameters()}

    return read
