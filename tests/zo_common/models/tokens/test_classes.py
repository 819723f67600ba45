"""Classes that write tokens: each one's own loss is the mean of ours over all tokens of a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ctc import noise_waves
from tiny_models import TOKENS, write_tokens
from torch.nn.functional import pad

from zo_common.errors import ConfigError, UnsupportedModel
from zo_common.lattice.trained import DEFAULT, select
from zo_common.models.load import CAUSAL, load_model
from zo_common.models.objectives import IGNORE
from zo_common.models.tokens.loss import TokenLoss
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.speech_model import SpeechModel


@pytest.fixture(scope="module", params=TOKENS)
def speech(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    """A tiny model of each class."""
    return speech_model(load_model(str(write_tokens(request.param, tmp_path_factory.mktemp("tokens")))))


def _batch(speech: SpeechModel, *texts: str) -> Any:
    reader: Any = speech.reader()
    waves = noise_waves(*(16000 - 2000 * n for n in range(len(texts))))
    rows = [reader.of_wave(wave, reader._form.tokens(text)) for wave, text in zip(waves, texts, strict=True)]
    return reader.recordings(tuple(rows), ()).batch(range(len(texts)))


@torch.inference_mode()
def test_the_loss_is_the_classs_own(speech: SpeechModel) -> None:
    batch = _batch(speech, "an tan", "two cats")
    counts = (batch.labels != IGNORE).sum(dim=1)

    ours = TokenLoss(speech.model, batch)()

    inputs, labels = batch.inputs, batch.labels
    if speech.model.config.model_type in CAUSAL:  # which shift labels themselves, and so want the end in their input
        labels = pad(labels, (1, 0), value=IGNORE)
        ids = torch.where(labels == IGNORE, pad(inputs["input_ids"], (0, 1)), labels)
        inputs = {**inputs, "input_ids": ids, "attention_mask": pad(inputs["attention_mask"], (1, 0), value=1)}
    own = float(speech.model(**inputs, labels=labels).loss)
    assert float((ours * counts).sum() / counts.sum()) == pytest.approx(own, rel=1e-5)
    assert counts.tolist() == [len(speech.reader()._form.tokens(t)) + 1 for t in ("an tan", "two cats")]


@torch.inference_mode()
def test_an_utterance_counts_the_same_alone(speech: SpeechModel) -> None:
    together = TokenLoss(speech.model, _batch(speech, "an tan", "two cats"))()

    alone = TokenLoss(speech.model, _batch(speech, "an tan"))()

    assert float(alone) == pytest.approx(float(together[0]), rel=1e-3)
    uncertain = speech.uncertainties(_batch(speech, "an tan"))
    assert 0 < float(uncertain) < 4


def test_the_default_preset_is_in_the_first_layers_of_the_encoder_and_in_the_decoder(speech: SpeechModel) -> None:
    chosen = select(speech.model, DEFAULT)
    decoder = {name for name in chosen if "decoder." in name or "language_model." in name}

    assert all(parameter.dim() == 1 for parameter in chosen.values())
    assert all(name.endswith("bias") for name in decoder)
    assert all(int(name.split(".layers.")[1].split(".")[0]) < 3 for name in set(chosen) - decoder)
    assert set(select(speech.model, "encoder-residual-bias")) == set(chosen) - decoder
    assert select(speech.model, "encoder-ffn") and select(speech.model, "norms")
    halves = [set(select(speech.model, preset)) for preset in ("encoder", "decoder")]
    assert not halves[0] & halves[1]


def test_a_loop_is_searched_for_again(speech: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zo_common.models.tokens.transcribe.MAX_NEW_TOKENS", 12)
    examples = [speech.reader().of_wave(wave) for wave in noise_waves(8000, 9000)]
    seen: list[tuple[int, int]] = []
    first = speech.transcribe(examples)
    monkeypatch.setattr("zo_common.models.loops.MAX_COMPRESSION_RATIO", 0.01)

    again = speech.transcribe(examples, on_progress=lambda done, of: seen.append((done, of)))

    assert seen == [(2, 2)]
    for before, after in zip(first, again, strict=True):
        triples = [after.tokens[n : n + 3] for n in range(len(after.tokens) - 2)]
        assert len(set(triples)) == len(triples) or not before.text
        assert max((*before.tokens, *after.tokens), default=0) < len(speech.processor.tokenizer)


@pytest.mark.parametrize("kind", ["canary", "qwen3_asr", "omniasr"])
def test_a_language_that_is_not_known_is_told(kind: str, tmp_path: Path) -> None:
    speech = speech_model(load_model(str(write_tokens(kind, tmp_path))))

    with pytest.raises(ConfigError, match="language is 'xx', which the model's processor refuses"):
        speech.reader(language="xx")


@pytest.mark.parametrize(
    "kind",
    ["speecht5", "seamless_m4t", "granite_speech", "cohere_asr", "voxtral", "parakeet_rnnt", "parakeet_tdt"],
)
def test_others_of_the_registry_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))

    with pytest.raises(UnsupportedModel, match=rf"is a '{kind}' model, supported are: WhisperFor.*MoonshineFor"):
        load_model(str(tmp_path))
