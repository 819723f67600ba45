"""Frozen weights in another precision: conversion in place, tensor by tensor, and back.

Held are the weights of linear layers, convolutions and embeddings that no training moves: all but some thousandths of a
model. Biases, norms, positions and trained tensors are float32. In int8, linear weights have a scale for each row
(weight-only, torchao); convolutions, and embeddings with the projection that is tied to them, are bfloat16, as served
models have them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from zo_common.errors import ConfigError, UnsupportedModel
from zo_common.models.frozen.layers import HELD, PLAIN, Held
from zo_common.models.frozen.originals import Originals, Read

_POSITIONS = "embed_positions"  # models add this table as it is, without calling its module
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}


@dataclass
class _Shared:
    """One weight, the names it has and the modules it belongs to."""

    weight: nn.Parameter
    names: list[str] = field(default_factory=list)
    modules: list[Any] = field(default_factory=list)


def hold(model: nn.Module, trained: Collection[str], precision: str, originals: Originals) -> None:
    """Put the frozen weights of a model into another precision, in place; "float32" gives back its own.

    Args:
        model: at its base weights, or with some already held; frozen weights may be on the meta device, and then are
            read from `originals` alone.
        trained: names of trained tensors, which stay as they are.

    Raises:
        ConfigError: int8 without torchao.
        UnsupportedModel: a weight is not that of the model's file, or is not finite.
    """
    make = _int8 if precision == "int8" else None
    if make is not None:
        _torchao()
    for shared in _held_weights(model, trained):
        read = _original(shared, originals)
        weight = read()
        _refuse_other(shared, weight)
        device = torch.device("cpu") if shared.weight.is_meta else shared.weight.device
        linear = all(issubclass(PLAIN.get(type(m), type(m)), nn.Linear) for m in shared.modules)
        if precision == "float32":
            kept = weight.to(device, copy=True)
        elif make is not None and linear:
            kept = make(weight.to(device))
        else:
            kept = weight.to(device, _DTYPES[precision])
        _replace(shared, nn.Parameter(kept, requires_grad=False), read, held=precision != "float32")
        shared.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # free the old one before the next is made


def _held_weights(model: nn.Module, trained: Collection[str]) -> list[_Shared]:
    found: dict[int, _Shared] = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if type(module) in HELD | PLAIN and weight is not None and _POSITIONS not in path:
            shared = found.setdefault(id(weight), _Shared(weight))
            shared.names.append(f"{path}.weight")
            shared.modules.append(module)
    used: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        used[id(parameter)] = used.get(id(parameter), 0) + 1
        if name in trained:
            found.pop(id(parameter), None)
    # a weight that a module of another kind uses too is left alone
    return [shared for key, shared in found.items() if used[key] == len(shared.names)]


def _original(shared: _Shared, originals: Originals) -> Read:
    known = [module.original for module in shared.modules if isinstance(module, Held)]
    read = known[0] if known else originals.reader(shared.names)
    if read is None:
        raise UnsupportedModel(
            f"weight {shared.names[0]!r} is not in the model's safetensors under this name, which frozen-precision "
            "needs: save the model with save_pretrained, or set frozen-precision=float32"
        )
    return read


def _refuse_other(shared: _Shared, weight: torch.Tensor) -> None:
    name, here = shared.names[0], shared.weight
    if tuple(weight.shape) != tuple(here.shape) or not bool(torch.isfinite(weight).all()):
        raise UnsupportedModel(
            f"weight {name!r} in the model's file has shape {tuple(weight.shape)}, or values that are not finite, "
            f"expected finite ones of shape {tuple(here.shape)}: take an undamaged copy of the model"
        )
    loaded = here.dtype == torch.float32 and not here.is_meta
    if loaded and not torch.equal(here.detach(), weight.to(here.device)):
        raise UnsupportedModel(
            f"weight {name!r} is not the one in the model's file, as loading changes it, which frozen-precision cannot "
            "follow: set frozen-precision=float32"
        )


def _replace(shared: _Shared, weight: nn.Parameter, read: Read, held: bool) -> None:
    for module in shared.modules:
        module._parameters["weight"] = weight
        kind = PLAIN.get(type(module), type(module))
        module.__class__ = HELD[kind] if held else kind
        if held:
            module.original, module.exact = read, False


@contextmanager
def exact_weights(model: nn.Module) -> Iterator[None]:
    """Within it the held layers of a model compute in float32 with their originals, which are read layer by layer."""
    held: list[Any] = [module for module in model.modules() if isinstance(module, Held)]
    for module in held:
        module.exact = True
    try:
        yield
    finally:
        for module in held:
            module.exact = False


@cache
def _torchao() -> Any:
    try:
        from torchao import quantization
    except ImportError:
        raise ConfigError(
            "frozen-precision is 'int8', which needs the package torchao, which is not installed: pip install "
            "'federated-zo-asr[int8]', or set frozen-precision=bfloat16"
        ) from None
    return quantization


def _int8(weight: torch.Tensor) -> torch.Tensor:
    """Return an int8 tensor with a scale for each row, which linear layers multiply with in bfloat16."""
    torchao = _torchao()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    return layer.weight.detach()
