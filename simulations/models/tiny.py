"""Small substitutes for a model and recordings: a random Whisper of two layers, and rows of a second of tones."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from zo_common.models.quiet import quiet_transformers

RATE = 16000
SPEAKERS = {"train": ("anna", "ben", "cleo"), "test": ("dora",)}
ROWS = 3  # for each speaker


def write_tiny_whisper(source: Path, target: Path, seed: int = 0) -> Path:
    """Write a random Whisper of width 32 with the tokenizer, vocabulary and feature extractor of `source`."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    quiet_transformers(warnings=False)
    settings = WhisperConfig.from_pretrained(source).to_dict() | {
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
    model.generation_config = GenerationConfig.from_pretrained(source)
    model.save_pretrained(target)
    WhisperProcessor.from_pretrained(source).save_pretrained(target)
    return target


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
