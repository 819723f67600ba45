"""Refusal of folders that hold something other than a model: one sentence each, with the remedy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from zo_common.errors import ModelNotFound, UnsupportedModel

_POINTER = b"version https://git-lfs.github.com/spec/"
_EXTRACTORS = ("preprocessor_config.json", "processor_config.json")


def refuse_foreign(source: str) -> None:
    """Refuse a local path that holds another program's model, or a part of one. A hub id passes.

    Raises:
        UnsupportedModel: a PEFT adapter, a CTranslate2 model, or a PyTorch file.
        ModelNotFound: files that git-lfs has not fetched, or a checkpoint without its processor.
    """
    path = Path(source)
    if path.is_file():
        raise UnsupportedModel(
            f"model {source!r} is a file, expected a directory made by save_pretrained: convert OpenAI's "
            ".pt with convert_openai_to_hf.py of transformers' sources, or pass the directory"
        )
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return  # a hub id, or what cannot be read: loading says which
    if "adapter_config.json" in names and not _has_weights(path):
        raise UnsupportedModel(
            f"model {source!r} is a PEFT adapter, expected a whole model: merge it first, with "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(directory)"
        )
    if any(name == "model.bin" or name.startswith("model.bin.part") for name in names):
        raise UnsupportedModel(
            f"model {source!r} is a CTranslate2 model, expected one of transformers: convert it with "
            "`zo-asr sim import-whisper SOURCE OUTPUT`"
        )
    _refuse_pointers(source, path)
    if "config.json" not in names and any(name.endswith((".pt", ".pth", ".ckpt", ".nemo")) for name in names):
        raise UnsupportedModel(
            f"model {source!r} holds a PyTorch checkpoint and no config.json, expected a directory made by "
            "save_pretrained: convert it with the script that transformers has for its model"
        )
    if _has_weights(path) and not names & set(_EXTRACTORS):
        trainer = "a Trainer checkpoint" if "trainer_state.json" in names else "a model"
        raise ModelNotFound(
            f"directory {source!r} is not a complete saved model (it is {trainer} without its processor): save model "
            "and processor with save_pretrained"
        )


def refuse_non_finite(source: str, model: nn.Module) -> None:
    """Refuse weights that are not finite.

    Raises:
        UnsupportedModel: names the tensor.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UnsupportedModel(
                f"model {source!r} has NaN or infinite values in tensor {name!r}, expected numbers: take an undamaged "
                "copy of the model"
            )


def _has_weights(path: Path) -> bool:
    found = [entry.name for pattern in ("*.safetensors", "pytorch_model*.bin") for entry in path.glob(pattern)]
    return any(not name.startswith("adapter") for name in found)


def _refuse_pointers(source: str, path: Path) -> None:
    for entry in sorted(path.iterdir()):
        if entry.is_file() and entry.stat().st_size < 1024 and entry.read_bytes().startswith(_POINTER):
            raise ModelNotFound(
                f"directory {source!r} is not a complete saved model ({entry.name} is a git-lfs pointer, not the file "
                "itself): run `git lfs pull` in it"
            )
