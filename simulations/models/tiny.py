"""Small substitutes for a model and recordings: a random Whisper of two layers, and rows of a second of tones."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from zo_common.models.quiet import transformers_quiet

RATE = 16000
SPEAKERS = {"train": ("anna", "ben", "cleo"), "test": ("dora",)}
ROWS = 3  # for each speaker
TEXT_TOKENS = 8192  # the first merges of 50 257: a whole vocabulary takes half a second to load


def write_tiny_whisper(source: Path, target: Path, seed: int = 0, whole_vocabulary: bool = False) -> Path:
    """Write a random Whisper of width 32 with the feature extractor and the first text tokens of `source`."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    with transformers_quiet():
        WhisperProcessor.from_pretrained(source).save_pretrained(target)
    given = WhisperConfig.from_pretrained(source)
    if whole_vocabulary:
        ids = {token: token for token in range(given.vocab_size)}
    else:
        ids = shorten_tokenizer(target, languages=False)
    settings = _with_ids(given.to_dict(), ids) | {
        "vocab_size": len(ids),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(WhisperConfig.from_dict(settings))
    model.generation_config = GenerationConfig.from_dict(
        _with_ids(GenerationConfig.from_pretrained(source).to_dict(), ids)
    )
    with transformers_quiet():
        model.save_pretrained(target)
    return target


def shorten_tokenizer(folder: Path, languages: bool) -> dict[int, int]:
    """Keep the first text tokens and the special ones of a saved Whisper's tokenizer; the new ids by the old.

    The 1501 timestamps go: to copy them takes longer than all else of loading.

    Args:
        languages: keep the tokens of languages, too: English-only models have no use for theirs.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content, settings = (json.loads(each.read_text(encoding="utf-8")) for each in (file, settings_file))
    dropped = () if languages else {f"<|{code}|>" for code in LANGUAGES}
    model, special = content["model"], content["added_tokens"]
    special[:] = [
        each for each in special if each["content"] not in dropped and not re.match(r"<\|\d+\.\d\d\|>", each["content"])
    ]
    chosen = sorted({*range(TEXT_TOKENS), *(each["id"] for each in special)})
    ids = {old: new for new, old in enumerate(chosen)}
    model["vocab"] = {token: ids[old] for token, old in model["vocab"].items() if old in ids}
    model["merges"] = model["merges"][: TEXT_TOKENS - 256]
    for each in special:
        each["id"] = ids[each["id"]]
    for each in content["post_processor"]["special_tokens"].values():
        each["ids"] = [ids[old] for old in each["ids"]]
    settings["extra_special_tokens"] = [each for each in settings["extra_special_tokens"] if each not in dropped]
    file.write_text(json.dumps(content), encoding="utf-8")
    settings_file.write_text(json.dumps(settings), encoding="utf-8")
    return ids


def _with_ids(settings: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """Return settings whose tokens are the new ones; suppressed tokens that are no longer there are left out."""

    def new(key: str, value: Any) -> Any:
        if value is None:
            return None
        if key == "forced_decoder_ids":
            return [[place, ids[token]] for place, token in value]
        if key.endswith("suppress_tokens"):
            return [ids[token] for token in value if token in ids]
        if key.endswith("_to_id"):
            return {name: ids[token] for name, token in value.items()}
        return ids[value] if key.endswith("token_id") else value

    return {key: new(key, value) for key, value in settings.items()}


def write_mini_corpus(directory: Path) -> Path:
    """Write an `audiofolder` with 0.5 to 1 s of tone and noise per row, three train speakers and a test speaker."""
    rng = np.random.default_rng(0)
    for split, speakers in SPEAKERS.items():
        folder = directory / split
        folder.mkdir(parents=True)
        rows = []
        for speaker in speakers:
            for index in range(ROWS):
                seconds = np.arange(RATE // 2 + 1600 * index) / RATE
                wave = 0.3 * np.sin(2 * np.pi * (200 + 60 * index) * seconds) + 0.05 * rng.standard_normal(len(seconds))
                name = f"{speaker}{index}.wav"
                sf.write(folder / name, wave.astype(np.float32), RATE)
                rows.append((name, f"{speaker} counts to {index}", speaker))
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "transcription", "speaker"), *rows])
    return directory
