"""The float32 weights of a saved model, read from its safetensors files one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import torch
from safetensors import SafetensorError, safe_open

from zo_common.errors import ModelNotFound, UnsupportedModel
from zo_common.models.foreign import refuse_damaged

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
Read = Callable[[], torch.Tensor]


class Originals:
    """Places of the weights of a saved model.

    A file is mapped for one tensor at a time: pages of a mapping count as memory of the process until it is closed.

    Args:
        source: hub id or directory, as `load_model` takes it.

    Raises:
        UnsupportedModel: the source has no safetensors.
        ModelNotFound: they, or their index, are damaged.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        with refuse_damaged(source):
            self._files = _files(source)

    def reader(self, names: Iterable[str]) -> Read | None:
        """Return a reader of the first of these names that is stored, as float32; None if none is.

        The tensor may be a read-only view of the file. Raises ModelNotFound if the file is gone.
        """
        name = next((name for name in names if name in self._files), None)
        return None if name is None else lambda: self._read(name)

    def _read(self, name: str) -> torch.Tensor:
        try:
            with safe_open(self._files[name], "pt") as tensors:
                found: torch.Tensor = tensors.get_tensor(name)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelNotFound(
                f"weight {name!r} of {self._source} cannot be read any more ({error}): restore the model's files"
            ) from None
        return found.float()


def _files(source: str) -> dict[str, str]:
    """Return tensor name → file."""
    from transformers.utils.hub import cached_file

    def path(name: str) -> str | None:
        found: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return found

    index = path(_INDEX)
    if index is not None:
        with open(index, encoding="utf-8") as file:
            shards = json.load(file)["weight_map"]
        local = {shard: path(shard) for shard in set(shards.values())}
        return {name: found for name, shard in shards.items() if (found := local[shard]) is not None}
    whole = path(_WHOLE)
    if whole is None:
        raise UnsupportedModel(
            f"model {source!r} has no {_WHOLE}, which frozen-precision reads its weights from: save it with "
            "save_pretrained, or set frozen-precision=float32"
        )
    with safe_open(whole, "pt") as tensors:
        return dict.fromkeys(tensors.keys(), whole)
