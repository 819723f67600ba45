"""Export of an adapted model as a `from_pretrained` directory, processor included."""

from __future__ import annotations

import os
import shutil
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zo_common.errors import ConfigError, ExportFailed
from zo_common.models.ctc.language import adapter_tensors
from zo_common.models.quiet import transformers_quiet
from zo_common.models.whisper.languages import whisper_code

_FLOAT32 = 4


def export_model(
    model: Any, processor: Any, directory: Path, *, replace: bool = False, language: str = "", card: str = ""
) -> Path:
    """Save an adapted model and its processor; the directory is written atomically.

    Args:
        replace: replace an earlier export of the same run.
        language: code or English name, which multilingual Whisper transcribes by default then; empty leaves the base's.
        card: text of the model card.

    Raises:
        ConfigError: the directory exists and holds something.
        ExportFailed: it cannot be written, such as on a full disk; nothing is left of the attempt.
    """
    if not replace and directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} exists and is not empty: name a new directory")
    if language:
        _speak_by_default(model, language)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _save(model, processor, temporary, card)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
    except (OSError, SafetensorError) as error:
        raise ExportFailed(_failed(directory, error)) from None
    except Exception as error:  # as tokenizers raises what the system said
        if "os error" not in str(error):
            raise
        raise ExportFailed(_failed(directory, error)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _write_language(model: Any, processor: Any, directory: Path) -> None:
    """Write the file that a model with language adapters reads when it is asked for this language."""
    from safetensors.torch import save_file

    language = getattr(processor.tokenizer, "target_lang", None)
    if language and (tensors := adapter_tensors(model)):
        save_file(tensors, directory / f"adapter.{language}.safetensors", {"format": "pt"})


def exported_bytes(base: Path) -> int:
    """Return bytes of an adapted model's weights, saved in float32; 0 for what is not a folder of safetensors."""
    return _FLOAT32 * count_parameters(base)


def count_parameters(folder: Path) -> int:
    """Return weights of a saved model, from the headers of its safetensors; tied ones count once."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "np") as tensors:
                count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (OSError, SafetensorError):  # whoever loads the model says what is wrong with it
            continue
    return count


def _save(model: Any, processor: Any, folder: Path, card: str) -> None:
    with transformers_quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        # transformers 5 writes it into processor_config.json alone; CTranslate2 and older programs look for this file
        processor.feature_extractor.save_pretrained(folder)
    _copy_normalizer(processor, folder)
    _write_language(model, processor, folder)
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _failed(directory: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"the model cannot be written to {directory} ({reason})"


def _speak_by_default(model: Any, language: str) -> None:
    """Set language and task of a multilingual Whisper's generation config: `generate` needs to be told neither."""
    config: Any = getattr(model, "generation_config", None)
    if not getattr(config, "is_multilingual", False):
        return
    config.language, config.task = whisper_code(language), "transcribe"
    config.forced_decoder_ids = None  # the older way to say the same, of the base's language


def _copy_normalizer(processor: Any, directory: Path) -> None:
    """`save_pretrained` leaves out Whisper's spelling table, without which `tokenizer.normalize` fails."""
    source = Path(str(processor.tokenizer.name_or_path)) / "normalizer.json"
    if source.is_file() and not (directory / "normalizer.json").exists():
        shutil.copyfile(source, directory / "normalizer.json")
