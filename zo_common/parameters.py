"""The choice of trained tensors: by name pattern, with presets for the speech models people adapt."""

from __future__ import annotations

import difflib
import fnmatch

import torch
from torch import nn

from zo_common.errors import PatternError, TensorIdCollision, UnsupportedModel
from zo_common.seeds import tensor_id

_NORMS = ("*layer_norm.*", "*layernorm.*", "*LayerNorm.*", "*.ln*.*", "ln*.*", "*norm.weight", "*norm.bias")
_BIASES = ("*.bias", "bias")

# shell-style patterns on parameter names; "!" excludes; names as in transformers
PRESETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "encoder": ("*encoder.*", "!*embed_positions*"),
    # where a dialect is learned: the first convolution and the feed-forward weights of the first two layers
    "encoder-early": (
        "*encoder.conv1.*",
        "*encoder.layers.[01].fc1.*",
        "*encoder.layers.[01].fc2.*",
        "*feature_extractor.conv_layers.0.conv.*",
        "*encoder.layers.[01].feed_forward.*",
    ),
    "encoder-ffn": ("*encoder.layers.*.fc1.*", "*encoder.layers.*.fc2.*", "*encoder.layers.*.feed_forward.*"),
    "encoder-attention": ("*encoder.layers.*attn.*", "*encoder.layers.*.attention.*"),
    "encoder-conv": ("*encoder.conv*", "*feature_extractor.conv_layers.*"),
    "decoder": ("*decoder.*", "!*embed_*"),
    "decoder-ffn": ("*decoder.layers.*.fc1.*", "*decoder.layers.*.fc2.*"),
    "norm": _NORMS,
    "bias": _BIASES,
    # what test-time adaptation moves in CTC models: norms alone, with the whole acoustic front end as in SUTA and
    # ZO-ASR (4.63 M of Wav2Vec2-base's 94 M), or with the other offsets
    "norms": _NORMS,
    "norms+features": (*_NORMS, "*feature_extractor.*", "*feature_projection.*"),
    "norms+biases": (*_NORMS, *_BIASES),
    # the same for Whisper: what the whole encoder's output is scaled and shifted by
    "encoder-norm": ("*encoder.layer_norm.*",),
}


def unique_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters in name order; tied ones once, under the alphabetically first of their names."""
    seen: set[tuple[int, ...]] = set()
    result: dict[str, nn.Parameter] = {}
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
        place = (parameter.data_ptr(), *parameter.shape) if parameter.data_ptr() else (id(parameter),)
        if place not in seen:
            seen.add(place)
            result[name] = parameter
    return result


def expand(pattern: str) -> tuple[str, ...]:
    """Comma-separated patterns with the presets among them replaced by theirs: `encoder-ffn,!*bias`."""
    parts = [p.strip() for p in pattern.split(",") if p.strip()]
    return tuple(q for p in parts for q in PRESETS.get(p, (p,)))


def _excluded(name: str, patterns: tuple[str, ...]) -> bool:
    return any(p.startswith("!") and fnmatch.fnmatchcase(name, p[1:]) for p in patterns)


def select(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """The trained tensors in name order.

    Args:
        pattern: a preset's name (`PRESETS`), or comma-separated shell patterns on parameter names; `!pattern` excludes.

    Raises:
        PatternError: nothing matches.
        TensorIdCollision: two names share a tensor id.
        UnsupportedModel: a matched tensor is not floating point.
    """
    patterns = expand(pattern)
    available = unique_parameters(model)
    chosen = {
        name: parameter
        for name, parameter in available.items()
        if any(fnmatch.fnmatchcase(name, p) for p in patterns) and not _excluded(name, patterns)
    }
    if not chosen:
        near = difflib.get_close_matches(pattern, [*PRESETS, *available], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}, or " if near else "use "
        raise PatternError(
            f"trained-tensors pattern {pattern!r} matches none of the model's {len(available)} tensors: {hint}"
            f"one of the presets {', '.join(PRESETS)}?"
        )
    check_ids(chosen)
    for name, parameter in chosen.items():
        if not parameter.dtype.is_floating_point:
            raise UnsupportedModel(f"trained tensor {name!r} has dtype {parameter.dtype}, expected a floating one")
    return chosen


def check_ids(names: dict[str, torch.nn.Parameter] | list[str]) -> None:
    """Refuse two names with one tensor id: they would share their directions."""
    seen: dict[int, str] = {}
    for name in names:
        other = seen.setdefault(tensor_id(name), name)
        if other != name:
            raise TensorIdCollision(
                f"tensors {other!r} and {name!r} share tensor id {tensor_id(name)}: exclude one from the pattern"
            )
