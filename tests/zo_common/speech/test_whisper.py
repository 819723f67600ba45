"""Features bit for bit as the extractor's, labels, batches, the cache, and problems reported together."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor

from zo_common.errors import ConfigError, DataError
from zo_common.models.objectives import IGNORE
from zo_common.models.whisper.objectives import whisper_losses
from zo_common.speech import whisper as module
from zo_common.speech.audio import decode
from zo_common.speech.manifest import Manifest, Utterance, read_manifest
from zo_common.speech.whisper import WINDOW_FRAMES, SpeechDataset, SpeechExample, load_dataset, prompt_ids

RATE = 16_000
LENGTHS = (0.5, 1.2345, 3.0, 29.68, 29.8, 30.0)


@pytest.fixture(scope="module")
def processor(whisper_dir: Path) -> WhisperProcessor:
    return WhisperProcessor.from_pretrained(whisper_dir)


def noise(seconds: float, seed: int = 0) -> Any:
    return 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


def write(folder: Path, rows: list[tuple[str, str]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,transcription,speaker", *(f'{name},"{text}",{text[:1]}' for name, text in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus") / "train"
    rows = [(f"{index}.wav", f"  word number {'very ' * index}{index}. ") for index in range(len(LENGTHS))]
    path = write(folder, rows)
    for index, seconds in enumerate(LENGTHS):
        soundfile.write(folder / f"{index}.wav", noise(seconds, index), RATE)
    return path


@pytest.fixture(scope="module")
def data(source: str, processor: WhisperProcessor) -> SpeechDataset:
    return load_dataset(source, processor)


@pytest.mark.parametrize("mels", [80, 128])
def test_windows_are_bit_exact(source: str, processor: WhisperProcessor, mels: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels)
    data = load_dataset(source, WhisperProcessor(extractor, processor.tokenizer))
    for index, (example, seconds) in enumerate(zip(data.examples, LENGTHS, strict=True)):
        wave = decode(Path(source) / f"{index}.wav")
        full = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features[0]
        frames = example.features.shape[1]
        assert torch.equal(example.window(), full)
        assert example.features.shape[0] == mels
        assert frames == min(math.ceil(seconds * 100) + 30 + math.ceil(seconds * 100) % 2, WINDOW_FRAMES)
        if frames < WINDOW_FRAMES:
            # The forward pass takes the last frames as the silence of the rest of the window.
            assert (example.features[:, -16:] == full[0, -1]).all()
        assert example.seconds == len(wave) / RATE
    batch = data.batch([0, 2], full_window=True)
    assert torch.equal(batch.features, torch.stack([data.examples[index].window() for index in (0, 2)]))


def test_only_the_first_recording_is_extracted_in_the_whole_window(
    source: str, processor: WhisperProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[int] = []
    extract = WhisperFeatureExtractor.__call__

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        found = extract(self, *arguments, **options)
        frames.append(found.input_features[0].shape[-1])
        return found

    monkeypatch.setattr(WhisperFeatureExtractor, "__call__", counted)
    data = load_dataset(source, processor)

    lengths = [example.features.shape[1] for example in data.examples]
    assert frames == [WINDOW_FRAMES, *lengths]


def test_an_extractor_whose_bits_depend_on_the_window_is_used_in_the_whole_one(
    source: str, processor: WhisperProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_dataset(source, processor)
    extract = WhisperFeatureExtractor.__call__

    def other(self: Any, *arguments: Any, **options: Any) -> Any:
        found = extract(self, *arguments, **options)
        if "max_length" in options:
            found["input_features"][0][0, 0] += 1e-6
        return found

    monkeypatch.setattr(WhisperFeatureExtractor, "__call__", other)
    found = load_dataset(source, processor)

    for one, two in zip(expected.examples, found.examples, strict=True):
        assert torch.equal(one.features, two.features)


def test_batches_are_trimmed_to_their_longest(data: SpeechDataset) -> None:
    batch = data.batch([0, 2, 1])
    longest = data.examples[2].features.shape[1]
    assert batch.features.shape == (3, 80, longest)
    assert batch.features.dtype == torch.float32
    for row, index in enumerate((0, 2, 1)):
        assert torch.equal(batch.features[row], data.examples[index].window()[:, :longest])


def test_labels(data: SpeechDataset, processor: WhisperProcessor) -> None:
    batch = data.batch([0, 3])
    tokenizer = processor.tokenizer
    assert data.prompt == (50257, 50362)
    for row, index in enumerate((0, 3)):
        example = data.examples[index]
        assert tokenizer.decode(example.labels) == f" {example.text}"
        assert batch.decoder_input_ids[row, : 2 + len(example.labels)].tolist() == [*data.prompt, *example.labels]
        labels = batch.labels[row]
        assert labels[labels != IGNORE].tolist() == [*example.labels, tokenizer.eos_token_id]
    assert data.texts[0] == "word number 0."


def test_order_and_totals(data: SpeechDataset) -> None:
    assert len(data) == len(LENGTHS)
    assert data.seconds == pytest.approx(sum(LENGTHS), abs=1e-3)
    assert data.length_sorted_batches(4) == [[4, 5, 3, 2], [1, 0]]
    assert data.skipped == ()
    with pytest.raises(ConfigError, match="batch size is 0"):
        data.length_sorted_batches(0)


def test_keep_and_progress(source: str, processor: WhisperProcessor) -> None:
    manifest = read_manifest(source)
    chosen = {manifest.utterances[index].where for index in (1, 2)}
    steps: list[tuple[int, int]] = []
    data = load_dataset(
        manifest, processor, keep=lambda u: u.where in chosen, progress=lambda done, total: steps.append((done, total))
    )
    assert [example.where for example in data.examples] == ["train/metadata.csv:3", "train/metadata.csv:4"]
    assert steps == [(1, 2), (2, 2)]
    with pytest.raises(DataError, match=r"No utterance is left to train on \(0 of 6 readable rows were chosen\)"):
        load_dataset(manifest, processor, keep=lambda _: False)


@pytest.fixture(scope="module")
def bad_source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bad") / "train"
    names = ["good", "gone", "corrupt", "empty", "nan", "long", "silent", "good", "good", "good", "stereo", "loud"]
    texts = ["fine"] * 7 + ["", "hi <|endoftext|>", "word " * 500, "two channels", "fine"]
    path = write(folder, [(f"{name}.wav", text) for name, text in zip(names, texts, strict=True)])
    soundfile.write(folder / "good.wav", noise(0.5), RATE)
    soundfile.write(folder / "stereo.wav", np.stack([noise(0.5, 1), noise(0.5, 2)], axis=1), 44_100)
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan]), RATE, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", noise(0.5) * 1e30, RATE, subtype="FLOAT")
    soundfile.write(folder / "long.wav", noise(30.5), RATE)
    (folder / "corrupt.wav").write_bytes(b"RIFF\0\0\0\0WAVEgarbage")
    return path


BAD = (
    (3, "got file_name 'gone.wav', expected a file that exists"),
    (9, "got an empty transcript"),
    (4, "'corrupt.wav' cannot be decoded"),
    (5, "'empty.wav' has no samples"),
    (6, "'nan.wav' has NaN or infinite samples"),
    (7, "'long.wav' lasts 30.50 s, expected at most 30 s"),
    (8, "'silent.wav' holds only silence"),
    (10, "the transcript contains Whisper's control token <|endoftext|>"),
    (11, "the transcript has 500 tokens, expected at most 446"),
    (13, "'loud.wav' has samples of up to"),
)


def test_all_problems_come_together(bad_source: str, processor: WhisperProcessor) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(bad_source, processor)
    for problem, (line, start) in zip(caught.value.problems, BAD, strict=True):
        assert problem.startswith(f"train/metadata.csv:{line}: {start}")
    assert str(caught.value).startswith("10 problems in the data:\n  train/metadata.csv:3: ")
    twice = Utterance("here:1", Path(bad_source) / "silent.wav", "<|notimestamps|>", {})
    with pytest.raises(DataError, match="2 problems in the data"):
        load_dataset(Manifest((twice,), ()), processor)


def test_skip_bad(bad_source: str, processor: WhisperProcessor, tmp_path: Path) -> None:
    data = load_dataset(bad_source, processor, skip_bad=True, cache_dir=tmp_path)
    assert data.texts == ("fine", "two channels")
    assert len(data.skipped) == len(BAD)
    manifest = read_manifest(bad_source)
    with pytest.raises(DataError, match="No utterance is left") as caught:
        load_dataset(manifest, processor, skip_bad=True, keep=lambda u: u.where.endswith(":4"))
    assert len(caught.value.problems) == 4


def test_cache(source: str, processor: WhisperProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "new" / "cache"
    first = load_dataset(source, processor, cache_dir=cache)
    files = sorted(cache.iterdir())
    assert len(files) == len(LENGTHS)
    whole = [file.read_bytes() for file in files]
    files[0].write_bytes(whole[0][:-100])
    half = len(whole[1]) // 2
    files[1].write_bytes(whole[1][:half] + bytes([whole[1][half] ^ 1]) + whole[1][half + 1 :])
    files[2].write_bytes(b"")
    calls = []
    monkeypatch.setattr(module, "decode", lambda audio: calls.append(audio) or decode(audio))
    again = load_dataset(source, processor, cache_dir=cache)
    assert len(calls) == 3
    assert [file.read_bytes()[:4] for file in files] == [b"PK\3\4"] * len(files)
    for one, other in zip(first.examples, again.examples, strict=True):
        assert torch.equal(one.features, other.features)
        assert one.seconds == other.seconds
    load_dataset(source, processor, cache_dir=cache)
    assert len(calls) == 3
    load_dataset(
        source, WhisperProcessor(WhisperFeatureExtractor(feature_size=128), processor.tokenizer), cache_dir=cache
    )
    assert len(list(cache.iterdir())) == 2 * len(LENGTHS)


def test_cache_that_cannot_be_written(source: str, processor: WhisperProcessor, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot write features"):
        load_dataset(source, processor, cache_dir=tmp_path / "file")


def test_extractors_without_constant_silence(source: str, processor: WhisperProcessor) -> None:
    for extractor in (WhisperFeatureExtractor(dither=0.1), WhisperFeatureExtractor(chunk_length=10)):
        with pytest.raises(ConfigError, match="constant silence"):
            load_dataset(source, WhisperProcessor(extractor, processor.tokenizer))


def test_prompts(processor: WhisperProcessor, whisper_dir: Path) -> None:
    english = [50257, 50362]
    assert prompt_ids(processor) == prompt_ids(GenerationConfig.from_pretrained(whisper_dir)) == english
    with pytest.raises(ConfigError, match="English-only, but the language is 'de'"):
        prompt_ids(processor, "de")
    maps = {"lang_to_id": {"<|en|>": 50259, "<|de|>": 50261}, "task_to_id": {"transcribe": 50359}}
    ids = {"decoder_start_token_id": 50258, "no_timestamps_token_id": 50363}
    config = GenerationConfig(is_multilingual=True, **ids, **maps)
    names = {"startoftranscript": 50258, "notimestamps": 50363, "transcribe": 50359, "en": 50259, "de": 50261}
    vocabulary = {f"<|{name}|>": token for name, token in names.items()}
    tokenizer = SimpleNamespace(eos_token_id=50257, get_added_vocab=lambda: vocabulary)
    multilingual: list[Any] = [config, SimpleNamespace(tokenizer=tokenizer)]
    for model in multilingual:
        assert prompt_ids(model) == [50258, 50259, 50359, 50363]
        assert prompt_ids(model, "German") == prompt_ids(model, "de") == [50258, 50261, 50359, 50363]
        for unknown in ("sw", "klingon", "startoftranscript"):
            with pytest.raises(ConfigError, match=f"does not know the language '{unknown}'"):
                prompt_ids(model, unknown)


def test_whisper_prefers_the_leading_space(whisper_dir: Path, processor: WhisperProcessor, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    from transformers import WhisperForConditionalGeneration

    from simulations.speech.espeak import Speaker, synthesize

    text = "What is the balance of my savings account?"
    speech = np.pad(synthesize(text, Speaker("us", "m1"), RATE), (RATE // 2, RATE // 2))
    soundfile.write(tmp_path / "0.wav", speech, RATE)
    model = WhisperForConditionalGeneration.from_pretrained(whisper_dir).eval()
    data = load_dataset(write(tmp_path, [("0.wav", text)]), processor)
    bare = processor.tokenizer(text, add_special_tokens=False).input_ids
    other = replace(data, examples=(replace(data.examples[0], labels=tuple(bare)),))
    with torch.no_grad():
        spaced, unspaced = (whisper_losses(model, d.batch([0])).item() for d in (data, other))
        generated = model.generate(data.batch([0], full_window=True).features)
    assert spaced < unspaced - 0.3
    assert processor.tokenizer.decode(generated[0], skip_special_tokens=True).startswith(" ")


class TestDraw:
    """Batches of similar length, in which every utterance is equally likely."""

    @staticmethod
    def _of(frames: list[int]) -> SpeechDataset:
        examples = tuple(SpeechExample(torch.zeros(1, n), n / 100, "a", (1,), str(n)) for n in frames)
        return SpeechDataset(examples, (0,), 2)

    def test_a_small_data_set_is_one_bucket(self) -> None:
        data = self._of([10, 300, 20, 200, 30])

        batches = [data.draw(3, np.random.default_rng(seed)) for seed in range(200)]

        assert all(batch == sorted(set(batch)) and len(batch) == 3 for batch in batches)
        assert {tuple(batch) for batch in batches} == set(combinations(range(5), 3))

    def test_a_batch_larger_than_the_data_is_all_of_it(self) -> None:
        assert self._of([4, 2]).draw(16, np.random.default_rng(0)) == [0, 1]

    def test_partners_are_of_similar_length_and_all_are_equally_likely(self) -> None:
        lengths = [int(n) for n in np.random.default_rng(1).permutation(90)]
        data = self._of([2 * n + 2 for n in lengths])
        draws = 9000
        generator = np.random.default_rng(2)
        seen = np.zeros(90)

        for _ in range(draws):
            batch = data.draw(4, generator)
            assert max(lengths[i] for i in batch) - min(lengths[i] for i in batch) < 9  # 11 buckets of 8 or 9
            seen[batch] += 1

        expected = draws * 4 / 90
        assert np.abs(seen - expected).max() < 5 * np.sqrt(expected)
