"""What a finished run leaves to use: a `from_pretrained` directory, processor included."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from zo_common.errors import ConfigError
from zo_common.models.ctc.language import adapter_tensors


def export_model(model: Any, processor: Any, directory: Path, *, replace: bool = False) -> Path:
    """Save an adapted model and its processor; the directory appears whole or not at all.

    Args:
        replace: put it in the place of an earlier export of the same run.

    Raises:
        ConfigError: the directory exists and holds something.
    """
    if not replace and directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} exists and is not empty: name a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        # transformers 5 writes it into processor_config.json alone; CTranslate2 and older programs look for this file
        processor.feature_extractor.save_pretrained(temporary)
        _copy_normalizer(processor, temporary)
        _write_language(model, processor, temporary)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _write_language(model: Any, processor: Any, directory: Path) -> None:
    """The file that a model with language adapters reads when it is asked for this language."""
    from safetensors.torch import save_file

    language = getattr(processor.tokenizer, "target_lang", None)
    if language and (tensors := adapter_tensors(model)):
        save_file(tensors, directory / f"adapter.{language}.safetensors", {"format": "pt"})


def _copy_normalizer(processor: Any, directory: Path) -> None:
    """`save_pretrained` leaves out Whisper's spelling table, without which `tokenizer.normalize` fails."""
    source = Path(str(processor.tokenizer.name_or_path)) / "normalizer.json"
    if source.is_file() and not (directory / "normalizer.json").exists():
        shutil.copyfile(source, directory / "normalizer.json")
