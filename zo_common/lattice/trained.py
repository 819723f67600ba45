"""The choice of trained tensors by name pattern, with presets for common speech models.

A part of a pattern may end in `@SCALE` or `@SCALE^WIDER`, as calibration writes it: directions act on its tensors
2**SCALE times as strongly as elsewhere, and their range is 2**WIDER times as wide (with a grid as much coarser).
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from zo_common.directions.seeds import tensor_id
from zo_common.errors import PatternError, TensorIdCollision, UnsupportedModel
from zo_common.lattice.groups import SEPARATOR, shapes_of, tensor_groups

_NORMS = ("*layer_norm.*", "*layernorm.*", "*LayerNorm.*", "*.ln*.*", "ln*.*", "*norm.weight", "*norm.bias")
_GAINS = ("*norm.weight", "*Norm.weight", "*.ln*.weight", "ln*.weight")
_BIASES = ("*.bias", "bias")
_ENCODER_LAYER = re.compile(r"(?:.*\.)?encoder\.layers\.(\d+)\.")
_LEAST_LAYERS = 3
_WRITERS = ("decoder", "language_model")  # modules that turn an encoder's states into tokens
AUTO = "auto"
DEFAULT = "encoder-decoder-bias"
MOST_SCALE, MOST_WIDER = 20, 8
_ADJUSTED = re.compile(r"(?P<what>[^@]+)@(?P<scale>[+-]?\d{1,2})(?:\^(?P<wider>\d{1,2}))?")

Patterns = tuple[str, ...]


def _encoder_layers(names: Collection[str]) -> int:
    """Return the number of transformer layers of a model's encoder, from its parameters' names; 0 if there are none."""
    found = [int(match[1]) for name in names if (match := _ENCODER_LAYER.match(name))]
    return max(found) + 1 if found else 0


def _groups(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the model's groups; none if the shapes are not known."""
    return tensor_groups(shapes_of(names)) if isinstance(names, Mapping) else {}


def _of_kinds(names: Collection[str], *kinds: str, place: str = "") -> Patterns:
    """Return tensors of some kinds, in places whose names end in `place`; if `place` is given, outside of decoders."""
    found = [(group.rpartition(SEPARATOR), tensors) for group, tensors in _groups(names).items()]
    return tuple(
        name
        for (where, _, kind), tensors in found
        if kind in kinds and where.endswith(place)
        for name in tensors
        if not (place and any(f"{word}." in name for word in _WRITERS))
    )


def _encoder_residual_bias(names: Collection[str]) -> Patterns:
    """Return the residual-stream biases of the first half of the encoder's layers, and of at least three.

    For a model without a decoder (CTC), the gains of all norms are used. With biases its loss falls as far, but only by
    less confident blanks, and hardly a word changes (docs/results/learning.md). An encoder without such biases uses the
    gains of the same layers.
    """
    if not any(f"{word}." in name for name in names for word in _WRITERS):
        return _of_kinds(names, "gain") or _GAINS
    layers = range(max(_LEAST_LAYERS, _encoder_layers(names) // 2))
    written = ("fc2", "self_attn.out_proj")
    known = tuple(f"*encoder.layers.{layer}.{module}.bias" for layer in layers for module in written)
    if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in known):
        return known
    return _of_kinds(names, "residual-bias", place="-first") or _of_kinds(names, "gain", place="-first") or known


def _encoder_decoder_bias(names: Collection[str]) -> Patterns:
    """Return encoder-residual-bias, and the biases of the decoder's values and feed-forward outputs that there are.

    Where a model knows a language fairly well, the decoder's have more signal for their curvature and noise.
    At equal passes this is as good or better on every task measured (docs/results/learning.md): the default.
    """
    known: Patterns = ("*decoder.layers.*.fc2.bias", "*decoder.layers.*.v_proj.bias")
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in known):
        written = _of_kinds(names, "residual-bias")
        known = tuple(name for name in written if any(f"{word}." in name for word in _WRITERS))
    return (*_encoder_residual_bias(names), *known)


def _norms(names: Collection[str]) -> Patterns:
    """Return weights and biases of all normalisations, found by name or by group kind."""
    return (*_NORMS, *_of_kinds(names, "gain", "norm"))


# shell-style patterns on parameter names, "!" excludes, or what makes them of a model's names; as in transformers
PRESETS: dict[str, Patterns | Callable[[Collection[str]], Patterns]] = {
    "all": ("*",),
    # a few thousand weights that reach every later layer: the most progress per forward pass; gains in CTC models
    "encoder-residual-bias": _encoder_residual_bias,
    "encoder-decoder-bias": _encoder_decoder_bias,
    "encoder": ("*encoder.*", "*audio_tower.*", "!*embed_positions*", "!decoder.*"),
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
    "decoder": ("*decoder.*", "*language_model.*", "!*embed_*"),
    "decoder-ffn": (
        "*decoder.layers.*.fc1.*",
        "*decoder.layers.*.fc2.*",
        "*decoder.layers.*.mlp.*",
        "*language_model.layers.*.mlp.*",
    ),
    "bias": _BIASES,
    # what test-time adaptation moves in CTC models: norms alone, with the whole acoustic front end as in SUTA and
    # ZO-ASR (4.63 M of Wav2Vec2-base's 94 M), or with the other offsets
    "norms": _norms,
    "norm": _norms,  # its name in the files of earlier runs
    "norms+features": lambda names: (*_norms(names), "*feature_extractor.*", "*feature_projection.*"),
    "norms+biases": lambda names: (*_norms(names), *_BIASES),
    # the same for Whisper: scale and shift of the encoder's output
    "encoder-norm": ("*encoder.layer_norm.*",),
}


# the same for models whose modules have other names: kinds of tensors, and the ending of their place
_BY_KIND: dict[str, tuple[tuple[str, ...], str]] = {
    "encoder-ffn": (("feed-forward",), "st"),  # -first and -last
    "encoder-attention": (("attention",), "st"),
    "encoder-early": (("feed-forward",), "-first"),
    "encoder-conv": (("convolution",), "front"),
}


def unique_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters in name order; tied ones once, under the alphabetically first of their names."""
    seen: set[tuple[int, ...]] = set()
    result: dict[str, nn.Parameter] = {}
    for name, parameter in sorted(model.named_parameters(remove_duplicate=False)):
        place = (parameter.data_ptr(), *parameter.shape) if parameter.data_ptr() else (id(parameter),)
        if place not in seen:
            seen.add(place)
            result[name] = parameter
    return result


def expand(pattern: str, names: Collection[str] = ()) -> Patterns:
    """Comma-separated patterns with presets and groups among them replaced by theirs: `encoder-ffn,!*bias`.

    Args:
        names: of the model's parameters, which some presets depend on; with their tensors, groups are known too.
            "auto" stands for the default preset until a calibration has chosen.

    Raises:
        PatternError: what follows an `@` is no scale.
    """
    return tuple(name for part in _parts(pattern) for name in _expanded(_adjustment(part)[0], names))


def adjustments(model: nn.Module, pattern: str) -> dict[str, tuple[int, int]]:
    """Return name → (exponent that its scale is raised by, that its range is), of tensors where they are not 0.

    If several parts of the pattern match a tensor, the last one counts.

    Raises:
        PatternError: the text after an `@` is not a scale, or is out of range.
    """
    if "@" not in pattern:
        return {}
    parameters = unique_parameters(model)
    found: dict[str, tuple[int, int]] = {}
    for part in _parts(pattern):
        what, scale, wider = _adjustment(part)
        if scale or wider:
            patterns = _expanded(what, parameters)
            found |= {n: (scale, wider) for n in parameters if any(fnmatch.fnmatchcase(n, p) for p in patterns)}
    return found


def _parts(pattern: str) -> list[str]:
    return [part.strip() for part in pattern.split(",") if part.strip()]


def _adjustment(part: str) -> tuple[str, int, int]:
    """Return a part of a pattern without its suffix, and the exponents of scale and range."""
    if "@" not in part[1:]:
        return part, 0, 0
    match = _ADJUSTED.fullmatch(part)
    scale, wider = (int(match["scale"]), int(match["wider"] or 0)) if match else (0, 0)
    if match is None or abs(scale) > MOST_SCALE or wider > MOST_WIDER:
        raise PatternError(
            f"trained-tensors has {part[:100]!r}, expected a pattern and @SCALE or @SCALE^WIDER with whole exponents "
            f"−{MOST_SCALE} … {MOST_SCALE} and 0 … {MOST_WIDER}, such as encoder-first/norm@-2"
        )
    return match["what"], scale, wider


def _expanded(part: str, names: Collection[str]) -> Patterns:
    if SEPARATOR in part and isinstance(names, Mapping):
        return tensor_groups(shapes_of(names)).get(part, (part,))
    preset = PRESETS.get(DEFAULT if part == AUTO else part, (part,))
    patterns = preset(names) if callable(preset) else preset
    if part in _BY_KIND and not any(fnmatch.fnmatchcase(name, p) for name in names for p in patterns):
        kinds, place = _BY_KIND[part]
        return _of_kinds(names, *kinds, place=place) or patterns
    return patterns


def measured_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return what a calibration compares: the default preset by its name, and the groups that share no tensor with it.

    If the preset matches nothing, these are only the groups.
    """
    parameters = unique_parameters(model)
    groups = tensor_groups(shapes_of(parameters))
    patterns = expand(DEFAULT, parameters)
    default = tuple(n for n in parameters if any(fnmatch.fnmatchcase(n, p) for p in patterns))
    apart = {group: names for group, names in groups.items() if not set(names) & set(default)}
    return {DEFAULT: default, **apart} if default else apart


def _excluded(name: str, patterns: tuple[str, ...]) -> bool:
    return any(p.startswith("!") and fnmatch.fnmatchcase(name, p[1:]) for p in patterns)


def select(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Return the trained tensors in name order.

    Args:
        pattern: a preset's name (`PRESETS`), a group's (`tensor_groups`), or comma-separated shell patterns on
            parameter names; `!pattern` excludes.

    Raises:
        PatternError: nothing matches, or the text after an `@` is not a scale.
        TensorIdCollision: two names share a tensor id.
        UnsupportedModel: a matched tensor is not floating point.
    """
    available = unique_parameters(model)
    chosen = _matching(available, pattern)
    if not chosen:
        # a preset may have no counterpart in this model
        presets = [name for name in PRESETS if _matching(available, name)]
        near = difflib.get_close_matches(pattern, [*presets, *available], n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}, or " if near else "use "
        raise PatternError(
            f"trained-tensors pattern {pattern!r} matches none of the model's {len(available)} tensors: {hint}"
            f"one of the presets {', '.join(presets)}?"
        )
    check_ids(chosen)
    for name, parameter in chosen.items():
        if not parameter.dtype.is_floating_point:
            raise UnsupportedModel(f"trained tensor {name!r} has dtype {parameter.dtype}, expected a floating one")
    return chosen


def _matching(available: dict[str, nn.Parameter], pattern: str) -> dict[str, nn.Parameter]:
    patterns = expand(pattern, available)
    return {
        name: parameter
        for name, parameter in available.items()
        if any(fnmatch.fnmatchcase(name, p) for p in patterns) and not _excluded(name, patterns)
    }


def check_ids(names: dict[str, torch.nn.Parameter] | list[str]) -> None:
    """Refuse two names with one tensor id: they would share their directions."""
    seen: dict[int, str] = {}
    for name in names:
        other = seen.setdefault(tensor_id(name), name)
        if other != name:
            raise TensorIdCollision(
                f"tensors {other!r} and {name!r} share tensor id {tensor_id(name)}: exclude one from the pattern"
            )
