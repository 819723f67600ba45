"""Waveforms → logits: normalisation, padding and masks as each family was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ctc import KINDS, NORMS, noise_waves, tiny_ctc, write_tiny_ctc
from transformers import Wav2Vec2FeatureExtractor

from zo_common.errors import DataError
from zo_common.models.ctc.forward import ctc_logits, frame_lengths, prepare_waves, receptive_field, uses_attention_mask
from zo_common.models.load import load_model

FAMILIES = [(kind, norm) for kind in KINDS for norm in NORMS]


@pytest.fixture(params=FAMILIES, ids="-".join)
def family(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A tiny model, and the kind of norm in its convolutions."""
    kind, norm = request.param
    return tiny_ctc(kind, norm), norm


@torch.inference_mode()
def _alone(model: Any, values: torch.Tensor, length: int) -> torch.Tensor:
    return model(values[None, :length]).logits[0]


class TestPrepareWaves:
    @pytest.mark.parametrize("mask", [True, False])
    @pytest.mark.parametrize("normalise", [True, False])
    def test_each_wave_is_what_the_extractor_makes_of_it_alone(self, mask: bool, normalise: bool) -> None:
        extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=mask)
        waves = noise_waves(1000, 700, 400)

        values, lengths = prepare_waves(extractor, waves)

        assert values.dtype == torch.float32
        assert values.shape == (3, 1000)
        assert lengths.tolist() == [1000, 700, 400]
        for row, wave in zip(values, waves, strict=True):
            alone = extractor(wave, sampling_rate=16000, return_tensors="pt").input_values[0]
            assert torch.equal(row[: len(wave)], alone)
            assert not row[len(wave) :].any()

    def test_normalised_waves_have_mean_0_and_variance_1(self) -> None:
        (row,), _ = prepare_waves(Wav2Vec2FeatureExtractor(do_normalize=True), noise_waves(1000))

        assert float(row.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(row.var(unbiased=False)) == pytest.approx(1.0, rel=1e-3)


class TestLengths:
    def test_frames_of_25_ms_every_20_ms(self) -> None:
        model = tiny_ctc()

        assert receptive_field(model.config) == 400
        assert frame_lengths(model, torch.tensor([400, 719, 720, 16000])).tolist() == [1, 1, 2, 49]

    def test_an_utterance_without_a_frame_is_refused(self) -> None:
        with pytest.raises(DataError) as caught:
            frame_lengths(tiny_ctc(), torch.tensor([16000, 399, 400, 0]))

        assert len(caught.value.problems) == 2
        assert caught.value.problems[0] == (
            "utterance 1 of the batch has 399 samples, the model needs at least 400 for one frame: leave it out"
        )

    def test_logits_have_as_many_frames_as_the_longest(self, family: tuple[Any, str]) -> None:
        model, _ = family
        values, lengths = prepare_waves(Wav2Vec2FeatureExtractor(), noise_waves(4000, 400))

        logits, frames = ctc_logits(model, values, lengths)

        assert frames.tolist() == [12, 1]
        assert logits.shape == (2, 12, model.config.vocab_size)


class TestPadding:
    @torch.inference_mode()
    @pytest.mark.parametrize("kind", KINDS)
    def test_layer_norm_models_hear_no_padding(self, kind: str) -> None:
        model = tiny_ctc(kind, "layer")
        values, lengths = prepare_waves(Wav2Vec2FeatureExtractor(), noise_waves(6000, 3100, 400))

        logits, frames = ctc_logits(model, values, lengths)

        for row, (samples, count) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
            expected = _alone(model, values[row], samples)
            torch.testing.assert_close(logits[row, :count], expected, rtol=1e-4, atol=1e-4)

    @torch.inference_mode()
    @pytest.mark.parametrize("kind", KINDS)
    def test_group_norm_models_hear_zeros_and_get_no_mask(self, kind: str) -> None:
        model = tiny_ctc(kind, "group")
        values, lengths = prepare_waves(Wav2Vec2FeatureExtractor(), noise_waves(6000, 3100))

        logits, _ = ctc_logits(model, values, lengths)

        assert torch.equal(logits, model(values).logits)
        assert not torch.allclose(logits[1, :9], _alone(model, values[1], 3100), atol=1e-3)
        torch.testing.assert_close(logits[0], _alone(model, values[0], 6000), rtol=1e-4, atol=1e-4)

    def test_the_mask_follows_the_norm(self, family: tuple[Any, str]) -> None:
        model, norm = family

        assert uses_attention_mask(model.config) is (norm == "layer")

    @torch.inference_mode()
    def test_the_same_batch_gives_the_same_bits(self, family: tuple[Any, str]) -> None:
        model, _ = family
        batch = prepare_waves(Wav2Vec2FeatureExtractor(), noise_waves(4000, 3100))

        assert torch.equal(ctc_logits(model, *batch)[0], ctc_logits(model, *batch)[0])


def test_a_saved_model_hears_what_it_heard(tmp_path: Path) -> None:
    model, processor = load_model(str(write_tiny_ctc(tmp_path, "hubert")))
    batch = prepare_waves(processor.feature_extractor, noise_waves(4000))

    with torch.inference_mode():
        torch.testing.assert_close(ctc_logits(model, *batch)[0], ctc_logits(tiny_ctc("hubert"), *batch)[0])
