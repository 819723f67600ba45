"""Groups of a model's tensors by kind and place, found from the shapes and nesting of its parameters.

A group's name, such as `encoder-first/residual-bias`, stands for its tensors in a `trained-tensors` pattern.

- Places: the first and the last part of each stack of numbered layers that is not convolutional, named after the module
  that holds the stack; `front` for convolutions before them; `rest` for tensors in no stack. The first part is half of
  the layers, and at least three.
- Kinds: `residual-bias` (biases of layers that write to the residual stream), `bias` (others), `gain` and `norm`
  (weights and biases of normalisations), `convolution`, `attention` and `feed-forward` (matrices). Embeddings are in
  no group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

FIRST_LAYERS = 3  # at least
SEPARATOR = "/"  # never part of a parameter's name
_LAYER = re.compile(r"(?P<stack>.+?)\.(?P<index>\d+)\.")
_PLAIN_STACKS = ("layers", "layer", "blocks", "block", "h")
_WRITES = ("fc2", "out_proj", "output_dense", "o_proj", "c_proj", "linear2")
_NORM = ("norm", "ln")


def tensor_groups(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Group name → names of its tensors, both sorted; a tensor is in at most one group.

    Args:
        shapes: shapes of all parameters, tied ones once (`parameters.unique_parameters`).
    """
    sizes = _stack_sizes(shapes)
    found: dict[str, list[str]] = {}
    for name in sorted(shapes):
        kind = _kind(name, shapes)
        if kind is not None:
            found.setdefault(f"{_place(name, kind, sizes)}{SEPARATOR}{kind}", []).append(name)
    return {group: tuple(found[group]) for group in sorted(found)}


def shapes_of(parameters: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Return shapes of parameters by name."""
    return {name: tuple(getattr(parameter, "shape", ())) for name, parameter in parameters.items()}


def _stack_sizes(names: Iterable[str]) -> dict[str, int]:
    """Return module that holds numbered layers → number of layers."""
    sizes: dict[str, int] = {}
    for name in names:
        if match := _LAYER.match(name):
            stack = match["stack"]
            sizes[stack] = max(sizes.get(stack, 0), int(match["index"]) + 1)
    return sizes


def _kind(name: str, shapes: Shapes) -> str | None:
    """Return the kind of a tensor; None if it is in no group."""
    module, _, leaf = name.rpartition(".")
    dimensions = len(shapes[name])
    if dimensions == 2:
        embedding = any(part.startswith("embed") or "embedding" in part for part in module.split("."))
        attention = "attn" in module or "attention" in module
        return None if embedding else "attention" if attention else "feed-forward"
    if dimensions != 1:
        return "convolution" if dimensions else None
    sibling, last = len(shapes.get(f"{module}.weight", shapes[name])), module.rpartition(".")[2]
    if leaf == "weight":
        return "gain"
    if sibling == 1 and any(word in last for word in _NORM):
        return "norm"
    if leaf != "bias":
        return None
    return "convolution" if sibling >= 3 else "residual-bias" if last in _WRITES else "bias"


def _place(name: str, kind: str, sizes: Mapping[str, int]) -> str:
    match = _LAYER.match(name)
    if match is not None and match["stack"].rpartition(".")[2] in _PLAIN_STACKS:
        stack, size = match["stack"], sizes[match["stack"]]
        owner = stack.rpartition(".")[0].rpartition(".")[2] or "layers"
        return f"{owner}-{'first' if int(match['index']) < max(FIRST_LAYERS, size // 2) else 'last'}"
    return "front" if kind == "convolution" or match is not None else "rest"
