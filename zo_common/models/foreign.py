"""Refusal of folders that hold something other than a model, or a damaged one: one sentence each, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from safetensors import SafetensorError
from torch import nn

from zo_common.errors import ModelNotFound, UnsupportedModel, ZOError
from zo_common.models.compute import memory_is_full
from zo_common.models.quiet import transformers_quiet

_POINTER = b"version https://git-lfs.github.com/spec/"
_EXTRACTORS = ("preprocessor_config.json", "processor_config.json")
_SAY_ENOUGH = OSError, ValueError, TypeError, RuntimeError, SafetensorError


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


@contextmanager
def refuse_damaged(source: str) -> Iterator[None]:
    """Turn what transformers raises on missing or damaged files, which may be any exception, into one sentence.

    Errors of ours, of a missing package and of a full memory stay as they are.

    Raises:
        ModelNotFound: says what is wrong with the source.
    """
    try:
        with transformers_quiet():
            yield
    except (ZOError, ImportError):
        raise
    except Exception as error:  # tokenizers raise bare ones; the cause stays known to programs
        if memory_is_full(error):
            raise
        raise ModelNotFound(_not_found(source, error)) from error


def _not_found(source: str, error: Exception) -> str:
    here = Path(source).exists()
    if here or not isinstance(error, (OSError, ValueError, httpx.HTTPError)):
        return (
            f"{'directory' if here else 'model'} {source!r} is not a complete saved model ({_reason(error)}): "
            "save model and processor with save_pretrained"
        )
    return (
        f"model {source!r} is neither a local directory nor a hub id that can be reached: check the name, "
        "or download it where there is a network and pass the directory"
    )


def _reason(error: Exception) -> str:
    """Return the first line of an error's text, after its type where that alone is said or the text is a mere name."""
    text = re.sub(r":\s*\n\s*", ": ", str(error).strip())
    first, kind = text.partition("\n")[0], type(error).__name__
    return first if first and isinstance(error, _SAY_ENOUGH) else f"{kind}: {first}".removesuffix(": ")


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
