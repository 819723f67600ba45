"""Loading of a model with its frozen weights in another precision; it is never held in float32 as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from zo_common.errors import UnsupportedModel
from zo_common.lattice.fingerprint import fingerprint, fingerprint_of
from zo_common.lattice.trained import select, unique_parameters
from zo_common.models.frozen.hold import hold
from zo_common.models.frozen.originals import Originals
from zo_common.models.hub import from_hub_or_cache
from zo_common.models.load import LoadedModel, empty_whisper, load_model, model_config, ready_whisper


class HeldModel(NamedTuple):
    """A loaded model with held weights, the fingerprint of its base, and where the base's weights are."""

    loaded: LoadedModel
    fingerprint: str
    originals: Originals


@from_hub_or_cache
def load_held(source: str, *, language: str, trained: str, precision: str) -> HeldModel:
    """Load a model as `load_model`, its frozen weights in `precision`.

    A Whisper is read tensor by tensor; others are loaded in float32, and converted tensor by tensor.

    Args:
        trained: pattern of the trained tensors, which stay float32.
        precision: "bfloat16", "float16" or "int8".

    Raises:
        ModelNotFound, UnsupportedModel, ConfigError: as `load_model`; also if the source has no safetensors.
        PatternError: nothing matches `trained`.
        ConfigError: int8 without torchao.
    """
    config, originals = model_config(source), Originals(source)
    if config.model_type == "whisper":
        model = empty_whisper(source, config)
        readers = {name: _reader(source, originals, model, name) for name in unique_parameters(model)}
        base = fingerprint_of((name, read()) for name, read in readers.items())
        hold(model, select(model, trained), precision, originals)
        _fill(source, model, readers)
        return HeldModel(LoadedModel(*ready_whisper(source, model, config)), base, originals)
    loaded = load_model(source, language=language)
    base = fingerprint(loaded.model)
    hold(loaded.model, select(loaded.model, trained), precision, originals)
    return HeldModel(loaded, base, originals)


def _reader(source: str, originals: Originals, model: nn.Module, name: str) -> Callable[[], torch.Tensor]:
    """Return the reader of a tensor under any of its names."""
    wanted = model.get_parameter(name)
    names = [name, *(other for other, found in model.named_parameters(remove_duplicate=False) if found is wanted)]
    read = originals.reader(names)
    if read is None:
        raise UnsupportedModel(
            f"tensor {name!r} is missing in the safetensors of {source}: save the model with save_pretrained again"
        )
    return read


def _fill(source: str, model: nn.Module, readers: dict[str, Callable[[], torch.Tensor]]) -> None:
    """Read the tensors that are still empty, tied ones once."""
    places: dict[int, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                places.setdefault(id(parameter), []).append((module, leaf))
    for name, read in readers.items():
        empty = model.get_parameter(name)
        if not empty.is_meta:
            continue
        weight = read()
        if weight.shape != empty.shape or not bool(torch.isfinite(weight).all()):
            raise UnsupportedModel(
                f"model {source!r} has NaN or infinite values in tensor {name!r}, or another shape than "
                f"{tuple(empty.shape)}, expected numbers: take an undamaged copy of the model"
            )
        filled = nn.Parameter(weight.clone(), requires_grad=False)
        for module, leaf in places[id(empty)]:
            module._parameters[leaf] = filled
