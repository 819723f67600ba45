"""Every class that transformers registers for CTC: its own loss, a sum over utterances, is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ctc import noise_waves
from tiny_models import CTC, TORCHAUDIO_CTC, tiny_model, write_ctc

from zo_common.errors import UnsupportedModel
from zo_common.lattice.groups import shapes_of, tensor_groups
from zo_common.lattice.trained import DEFAULT, select, unique_parameters
from zo_common.models.ctc.forward import uses_attention_mask
from zo_common.models.ctc.loss import CTCBatch, CTCLoss
from zo_common.models.ctc.text import CTCVocabulary
from zo_common.models.load import ctc_classes, load_model
from zo_common.speech.model_kinds import speech_model


def test_all_registered_classes_are_here() -> None:
    assert set(ctc_classes()) == {*CTC, TORCHAUDIO_CTC}


def own_loss(model: Any, batch: CTCBatch, name: str = "attention_mask") -> float:
    """What the class itself says of a batch."""
    model.config.ctc_loss_reduction = "sum"
    steps = batch.values.shape[1] if batch.values.dim() == 3 and name == "attention_mask" else batch.values.shape[-1]
    mask = (torch.arange(steps) < batch.lengths[:, None]).long()
    masks = {name: mask} if uses_attention_mask(model.config) else {}
    return float(model(batch.values, **masks, labels=batch.labels).loss)


@pytest.mark.parametrize("kind", CTC)
@torch.inference_mode()
def test_the_loss_is_the_classs_own(kind: str, tmp_path: Path) -> None:
    speech = speech_model(load_model(str(write_ctc(kind, tmp_path))))
    reader, vocabulary = speech.reader(), CTCVocabulary(speech.processor.tokenizer, speech.model.config.vocab_size)
    labels = [vocabulary.labels(text)[0] for text in ("an tan", "two cats")]
    # models that hear padding are compared where there is none: they take an unmasked utterance for whole
    waves = noise_waves(20000, 20000 if speech.hears_padding else 16000)
    batch = reader.recordings(tuple(map(reader.of_wave, waves, labels)), ()).batch([0, 1])

    ours = CTCLoss(speech.model, batch)()

    lengths = torch.tensor([len(row) for row in labels])
    own = own_loss(speech.model, batch, "padding_mask" if kind == "omniasr_ctc" else "attention_mask")
    assert float((ours * lengths).sum()) == pytest.approx(own, rel=1e-5)
    assert len(set(ours.tolist())) == 2


@torch.inference_mode()
def test_granites_loss_of_features(tmp_path: Path) -> None:
    model = tiny_model(TORCHAUDIO_CTC, classes=12, blank=0)
    values = torch.randn(2, 60, 4 * model.config.encoder_config.num_mel_bins)
    batch = CTCBatch(values, torch.tensor([60, 44]), torch.tensor([[3, 4, 4, 5], [6, 7, -100, -100]]))

    ours = CTCLoss(model, batch)()

    assert float((ours * torch.tensor([4, 2])).sum()) == pytest.approx(own_loss(model, batch), rel=1e-5)


def test_a_processor_that_needs_a_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ctc("parakeet_ctc", tmp_path)

    def lacking(*_: Any) -> Any:
        raise ImportError("GraniteSpeech5FeatureExtractor requires the torchaudio library but it was not found")

    monkeypatch.setattr("transformers.ParakeetProcessor.from_pretrained", lacking)
    with pytest.raises(UnsupportedModel, match="needs the package torchaudio, which is not installed: pip"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", [*CTC, TORCHAUDIO_CTC])
def test_the_default_preset_is_the_gains_of_all_norms(kind: str) -> None:
    model = tiny_model(kind, classes=30, blank=0)
    groups = tensor_groups(shapes_of(unique_parameters(model)))
    gains = {name for group, names in groups.items() if group.endswith("/gain") for name in names}

    assert set(select(model, DEFAULT)) == gains
    assert set(select(model, "norms")) >= gains
    assert gains and all("norm" in name.lower() for name in gains)
    assert select(model, "encoder-ffn") and select(model, "norms+biases")
