"""Greedy transcripts of Whisper on synthesised speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.speech.corpus import CorpusConfig, in_room
from simulations.speech.espeak import Speaker, synthesize
from zo_common.models.load import load_model
from zo_common.models.loops import is_loop
from zo_common.models.whisper.transcribe import MAX_NEW_TOKENS, transcribe
from zo_common.speech.metrics import score

TEXTS = ["The weather in London is very nice today.", "Please open the window and close the door."]


@pytest.fixture(scope="module")
def whisper(whisper_dir: Path) -> tuple[Any, Any]:
    """Whisper tiny.en and its processor."""
    return load_model(str(whisper_dir))[:2]


@pytest.fixture(scope="module")
def features(whisper: tuple[Any, Any]) -> list[torch.Tensor]:
    """Full log-mel windows of the two texts, spoken in a room."""
    speaker = Speaker("us", "m1", rate=150)
    waves = [in_room(synthesize(text, speaker), CorpusConfig(), key=text) for text in TEXTS]
    extract = whisper[1].feature_extractor
    return list(extract(waves, sampling_rate=16_000, return_tensors="pt").input_features)


@torch.inference_mode()
def _greedy(model: Any, processor: Any, window: torch.Tensor) -> str:
    """Token by token with the model's forward pass alone: the likeliest token that is not suppressed."""
    settings = model.generation_config
    tokens = processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    prompt = len(tokens)
    encoded = model.model.encoder(window[None])
    for _ in range(MAX_NEW_TOKENS):
        logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
        logits[settings.suppress_tokens] = -torch.inf
        if len(tokens) == prompt:
            logits[settings.begin_suppress_tokens] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == processor.tokenizer.eos_token_id:
            break
    return str(processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def test_speech_is_recognised_as_greedy_search_does(whisper: tuple[Any, Any], features: list[torch.Tensor]) -> None:
    model, processor = whisper
    seen: list[tuple[int, int]] = []

    texts = transcribe(model, processor, features, on_progress=lambda done, of: seen.append((done, of)))
    scores = score(TEXTS, texts)

    assert texts == [_greedy(model, processor, window) for window in features]
    assert scores.wer <= 0.25
    assert scores.words.length == 16
    assert scores.utterances == 2
    assert seen == [(2, 2)]


def test_batches_change_nothing_and_are_reported(whisper: tuple[Any, Any], features: list[torch.Tensor]) -> None:
    model, processor = whisper
    together = transcribe(model, processor, features)
    seen: list[tuple[int, int]] = []

    apart = transcribe(model, processor, features, batch_size=1, on_progress=lambda done, of: seen.append((done, of)))

    assert apart == together
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("language", ["en", "de"])
def test_a_multilingual_model_is_told_language_and_task(
    tiny_whisper_dir: Path, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load_model(str(tiny_whisper_dir))
    window = torch.randn(80, 3000, generator=torch.Generator().manual_seed(0))
    generate = model.generate
    options: list[dict[str, Any]] = []
    monkeypatch.setattr(model, "generate", lambda *a, **o: (options.append(o), generate(*a, **o))[1])

    texts = transcribe(model, processor, [window, window], language=language, batch_size=1)

    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert isinstance(texts[0], str)
    assert {(o["language"], o["task"]) for o in options} == {(language, "transcribe")}


def test_an_english_model_is_told_neither(
    whisper: tuple[Any, Any], features: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = whisper
    options: list[dict[str, Any]] = []
    tokens = torch.tensor([processor.tokenizer.encode("Hello.")])
    monkeypatch.setattr(model, "generate", lambda *a, **o: (options.append(o), tokens)[1])

    assert transcribe(model, processor, features[:1], language="de") == ["Hello."]
    assert not {"language", "task"} & set(options[0])
    assert options[0]["num_beams"] == 1
    assert options[0]["do_sample"] is False


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("My dear, my dear.", False),
        ("Please open the window and close the door.", False),
        ("My dear, " * 70, True),
        ("\u0434\u0430 " * 100, True),
    ],
)
def test_a_loop_is_what_compresses_well(text: str, loops: bool) -> None:
    assert is_loop(text) is loops


def test_a_loop_is_decoded_again_and_the_others_are_not(whisper: tuple[Any, Any], features: list[torch.Tensor]) -> None:
    model, processor = whisper
    plain = transcribe(model, processor, features)
    generate, asked = model.generate, []

    def looping(window: torch.Tensor, **options: Any) -> torch.Tensor:
        """The real search, but for a first transcript that never ends."""
        asked.append((len(window), options.get("no_repeat_ngram_size")))
        tokens = generate(window, **options)
        if "no_repeat_ngram_size" not in options:
            endless = processor.tokenizer(" my dear" * 60, add_special_tokens=False).input_ids
            end = processor.tokenizer.eos_token_id
            tokens = torch.nn.functional.pad(tokens, (0, len(endless) - tokens.shape[1]), value=end)
            tokens[1] = torch.tensor(endless)
        return tokens

    model.generate = looping
    try:
        found = transcribe(model, processor, features)
    finally:
        del model.generate
    assert asked == [(2, None), (1, 3)]
    assert found == plain
