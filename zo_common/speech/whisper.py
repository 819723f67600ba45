"""Speech for Whisper: features and tokens, read and checked before any training."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
import transformers
from transformers import GenerationConfig, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from zo_common.errors import ConfigError
from zo_common.models.whisper.languages import whisper_code
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels
from zo_common.speech.audio import SAMPLING_RATE, AudioProblem, decode
from zo_common.speech.manifest import Manifest, Utterance
from zo_common.speech.recordings import Example, Recordings, read_speech

WINDOW_FRAMES = 3000
HOP = 160  # samples for each frame
SILENT_FRAMES = 30  # kept after the speech: the forward pass needs 8 that do not see the speech
MAX_TOKENS = 448
CACHE_VERSION = 1

_ENGLISH_ONLY_END = 50256  # GPT-2's <|endoftext|>; the multilingual vocabulary has one text token more

_Features = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SpeechExample(Example):
    """One utterance: its features are log-mel frames, float32 (n_mels, T), T even, its labels text tokens."""

    def window(self, frames: int = WINDOW_FRAMES) -> torch.Tensor:
        """Return features (n_mels, frames), frames ≥ T, equal to the start of the extractor's 30 s window.

        After the kept frames the window has one value, the silence to which Whisper clips the recording's spectrum.
        """
        extra = frames - self.features.shape[1]
        return torch.cat([self.features, self.features[:, -1:].expand(-1, extra)], dim=1) if extra else self.features


@dataclass(frozen=True, eq=False)
class SpeechDataset(Recordings):
    """Checked examples, the decoder's forced start and end token, and the problems of skipped recordings."""

    examples: tuple[SpeechExample, ...] = field(repr=False)
    prompt: tuple[int, ...]
    end: int
    skipped: tuple[str, ...] = ()

    def batch(self, indices: Sequence[int], full_window: bool = False) -> WhisperBatch:
        """Return examples trimmed to the longest, (B, n_mels, T) with T even, or in the full window of 3000 frames."""
        chosen = [self.examples[index] for index in indices]
        frames = WINDOW_FRAMES if full_window else max(example.features.shape[1] for example in chosen)
        inputs, labels = whisper_labels(list(self.prompt), [list(example.labels) for example in chosen], self.end)
        return WhisperBatch(torch.stack([example.window(frames) for example in chosen]), inputs, labels)

    def whole_batch(self, indices: Sequence[int]) -> WhisperBatch:
        """As `Recordings.whole_batch`."""
        return self.batch(indices, full_window=True)


def load_dataset(
    source: str | Manifest,
    processor: WhisperProcessor,
    *,
    split: str | None = None,
    text_column: str = "transcription",
    language: str = "en",
    skip_bad: bool = False,
    keep: Callable[[Utterance], bool] | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SpeechDataset:
    """Read, decode and check every utterance that `keep` accepts.

    `progress` is called with the utterances done and their total; `cache_dir` keeps features between calls.

    Raises:
        DataError: there are faults, without `skip_bad` (the error has those of all rows); or no utterance is left.
        ConfigError: `language` or the processor does not fit, or `cache_dir` cannot be written.
    """
    reader = WhisperReader(processor, language, cache_dir)
    found = read_speech(
        source, reader, split=split, text_column=text_column, skip_bad=skip_bad, keep=keep, progress=progress
    )
    assert isinstance(found, SpeechDataset)
    return found


class WhisperReader:
    """Reader of recordings for a Whisper model, as `speech.Reader`; a row without a text has no tokens.

    Raises:
        ConfigError: `language` or the processor does not fit, or `cache_dir` cannot be written.
    """

    def __init__(self, processor: WhisperProcessor, language: str = "en", cache_dir: Path | None = None) -> None:
        self._prompt = tuple(prompt_ids(processor, language))
        self._tokenizer = processor.tokenizer
        self._features = _FeatureReader(processor.feature_extractor, cache_dir)

    def example(self, utterance: Utterance) -> SpeechExample | list[str]:
        """Return the example, or all its faults."""
        text = utterance.text.strip()
        # Whisper generates a space before the first word; without it the model would have to unlearn that.
        tokens = self._tokenizer(f" {text}", add_special_tokens=False).input_ids if text else []
        most, end = MAX_TOKENS - len(self._prompt), self._tokenizer.eos_token_id
        faults = []
        if len(tokens) > most:
            faults.append(f"the transcript has {len(tokens)} tokens, expected at most {most}: split the recording.")
        if max(tokens, default=0) >= end:
            control = self._tokenizer.convert_ids_to_tokens(max(tokens))
            faults.append(f"the transcript contains Whisper's control token {control}, expected plain text: remove it.")
        try:
            log_mel, seconds = self._features.read(utterance.audio)
        except AudioProblem as problem:
            return [*faults, str(problem)]
        return faults or SpeechExample(torch.from_numpy(log_mel), seconds, text, tuple(tokens), utterance.where)

    def of_wave(self, wave: npt.NDArray[np.float32], labels: Sequence[int] = ()) -> SpeechExample:
        """As `WaveReader.of_wave`."""
        log_mel = torch.from_numpy(self._features.extract(wave))
        return SpeechExample(log_mel, len(wave) / SAMPLING_RATE, "", tuple(labels), "")

    def recordings(self, examples: tuple[SpeechExample, ...], skipped: tuple[str, ...]) -> SpeechDataset:
        """Return examples of this reader as a data set."""
        return SpeechDataset(examples, self._prompt, int(self._tokenizer.eos_token_id), skipped)


class _FeatureReader:
    """Trimmed log-mel features of recordings, with a cache on disk if `cache_dir` is given."""

    def __init__(self, extractor: Any, cache_dir: Path | None) -> None:
        self.extractor, self.cache_dir, self._short = extractor, cache_dir, False
        # Another release of one of these libraries may compute other bits from the same recording.
        versions = [str(CACHE_VERSION), torch.__version__, transformers.__version__, soxr.__version__]
        settings = json.dumps([versions, extractor.to_dict()], sort_keys=True, default=str)
        self.settings = hashlib.sha256(settings.encode()).digest()

    def read(self, audio: Path | bytes) -> tuple[_Features, float]:
        """Return features (n_mels, T) and seconds of speech; raises AudioProblem."""
        path = self._cache_file(audio)
        cached = self._load(path) if path is not None else None
        if cached is None:
            wave = decode(audio)
            cached = self.extract(wave), len(wave) / SAMPLING_RATE
            if path is not None:
                _store(path, *cached)
        return cached

    def extract(self, wave: npt.NDArray[np.float32]) -> _Features:
        """Return features (n_mels, T) of samples (n,). Raises AudioProblem if they are not finite.

        The first recording is extracted in the whole window. If a window of T frames gives the same bits, that is what
        later ones are extracted in, as most of the time goes into silence.
        """
        kept = -(-len(wave) // HOP) + SILENT_FRAMES
        kept = min(kept + kept % 2, WINDOW_FRAMES)
        if self._short:
            return self._extract(wave, kept)
        full = self._extract(wave, WINDOW_FRAMES)
        if full.shape[1] != WINDOW_FRAMES or (full[:, kept:] != full[0, -1]).any():
            raise ConfigError(
                "The feature extractor does not end a short clip in constant silence in a window of 3000 frames, as "
                "Whisper's does: use the processor of the model, with dither 0."
            )
        features = full[:, :kept].copy()
        self._short = kept < WINDOW_FRAMES and np.array_equal(features, self._extract(wave, kept))
        return features

    def _extract(self, wave: npt.NDArray[np.float32], frames: int) -> _Features:
        window = {"max_length": HOP * frames} if frames < WINDOW_FRAMES else {}
        output = self.extractor(wave, sampling_rate=SAMPLING_RATE, return_tensors="np", **window)
        features = np.asarray(output.input_features[0], dtype=np.float32)
        if not np.isfinite(features).all():
            raise AudioProblem(
                "the recording has a spectrum that is not finite: scale its samples to the range -1 to 1."
            )
        return features

    def _cache_file(self, audio: Path | bytes) -> Path | None:
        if self.cache_dir is None:
            return None
        try:
            content = audio.read_bytes() if isinstance(audio, Path) else audio
        except OSError:
            return None  # decoding reports the fault
        return self.cache_dir / f"{hashlib.sha256(self.settings + content).hexdigest()}.npz"

    def _load(self, path: Path) -> tuple[_Features, float] | None:
        """Return a cached result, or None if it is missing or damaged: zip files have a checksum of their content."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                features, seconds = stored["features"], float(stored["seconds"])
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
            return None
        valid = features.dtype == np.float32 and features.ndim == 2 and features.shape[1] % 2 == 0
        return (features, seconds) if valid and features.shape[0] == self.extractor.feature_size else None


def _store(path: Path, features: _Features, seconds: float) -> None:
    """Write atomically: clients of one simulation may share the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
            part = Path(scratch) / path.name
            np.savez(part, features=features, seconds=np.float64(seconds))
            part.replace(path)
    except OSError as error:
        raise ConfigError(f"Cannot write features to '{path.parent}' ({error.strerror}): name another cache.") from None


def prompt_ids(source: WhisperProcessor | GenerationConfig, language: str = "en") -> list[int]:
    """Return the decoder's forced start for transcripts without timestamps; `language` is a code or English name.

    Raises ConfigError for a language that the model does not know.
    """
    code = whisper_code(language)
    if isinstance(source, GenerationConfig):
        settings = source.to_dict()
        start, silent = settings["decoder_start_token_id"], settings["no_timestamps_token_id"]
        multilingual = bool(settings.get("is_multilingual"))
        spoken = (settings.get("lang_to_id") or {}).get(f"<|{code}|>")
        transcribe = (settings.get("task_to_id") or {}).get("transcribe")
    else:
        ids = source.tokenizer.get_added_vocab()
        start, silent, transcribe = (ids[f"<|{name}|>"] for name in ("startoftranscript", "notimestamps", "transcribe"))
        # English-only tokenizers know the language tokens, too.
        multilingual = source.tokenizer.eos_token_id != _ENGLISH_ONLY_END and "<|en|>" in ids
        spoken = ids.get(f"<|{code}|>") if code in TO_LANGUAGE_CODE.values() else None
    if not multilingual and code != "en":
        raise ConfigError(f"The model is English-only, but the language is '{language}': use a multilingual Whisper.")
    if multilingual and spoken is None:
        raise ConfigError(f"The model does not know the language '{language}': name a code such as en, de or sw.")
    return [int(token) for token in ([start, spoken, transcribe, silent] if multilingual else [start, silent])]
