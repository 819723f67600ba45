"""The loss of Whisper batches, against hand-computed values and against `transformers`' own forward passes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from references import token_cross_entropy
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from zo_common.models.objectives import IGNORE
from zo_common.models.whisper.forward import EDGE_POSITIONS, embed_window, run_layers
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels, whisper_losses

PROMPT, END = [3, 4], 2
FULL = 40  # encoder positions of the tiny random model: 80 mel frames
SILENCE = -0.7


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """A Whisper of two layers, random weights far from their initialisation."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=FULL,
        max_target_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=END,
        decoder_start_token_id=3,
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _batch(frames: int, texts: list[list[int]], mels: int = 8, seed: int = 1) -> WhisperBatch:
    features = torch.randn(len(texts), mels, frames, generator=torch.Generator().manual_seed(seed))
    return WhisperBatch(features, *whisper_labels(PROMPT, texts, END))


def _speech_then_silence(speech: int, frames: int) -> torch.Tensor:
    features = torch.full((2, 8, frames), SILENCE)
    features[:, :, :speech] = torch.randn(2, 8, speech, generator=torch.Generator().manual_seed(2))
    return features


def test_whisper_labels_of_an_example() -> None:
    inputs, labels = whisper_labels([50, 51], [[7, 8, 9], [5], []], end=99)

    assert inputs.tolist() == [[50, 51, 7, 8, 9], [50, 51, 5, 99, 99], [50, 51, 99, 99, 99]]
    assert labels.tolist() == [
        [IGNORE, 7, 8, 9, 99],
        [IGNORE, 5, 99, IGNORE, IGNORE],
        [IGNORE, 99, IGNORE, IGNORE, IGNORE],
    ]


class TestWhisperLosses:
    @torch.inference_mode()
    def test_equal_transformers_at_the_full_window(self, tiny: nn.Module) -> None:
        batch = _batch(2 * FULL, [[10, 11, 12, 13], [20], [30, 31]])
        logits = tiny(input_features=batch.features, decoder_input_ids=batch.decoder_input_ids).logits

        losses = whisper_losses(tiny, batch)

        torch.testing.assert_close(losses, token_cross_entropy(logits, batch.labels), rtol=1e-5, atol=1e-6)
        mean = F.cross_entropy(logits[0, 1:6], torch.tensor([10, 11, 12, 13, END]))
        assert float(losses[0]) == pytest.approx(float(mean), rel=1e-5)

    @torch.inference_mode()
    def test_equal_transformers_on_whisper_itself(self, whisper_dir: Path) -> None:
        model = WhisperForConditionalGeneration.from_pretrained(whisper_dir, dtype=torch.float32).eval()
        processor = WhisperProcessor.from_pretrained(whisper_dir)
        seconds = torch.arange(16000) / 16000
        noise = 0.1 * torch.randn(24000, generator=torch.Generator().manual_seed(3))
        sounds = [torch.sin(440 * math.tau * seconds).numpy(), noise.numpy()]
        features = processor.feature_extractor(sounds, sampling_rate=16000, return_tensors="pt").input_features
        assert features.shape == (2, 80, 3000)
        texts = [processor.tokenizer.encode(t, add_special_tokens=False) for t in (" Hello there.", " A tone")]
        prompt = processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
        batch = WhisperBatch(features, *whisper_labels(prompt, texts, processor.tokenizer.eos_token_id))

        losses = whisper_losses(model, batch)
        logits = model(input_features=features, decoder_input_ids=batch.decoder_input_ids).logits

        torch.testing.assert_close(losses, token_cross_entropy(logits, batch.labels), rtol=1e-4, atol=1e-4)
        # four seconds stand for the whole window: exactly with a token a position, closely with 64 tail tokens
        trimmed = WhisperBatch(features[:, :, :400], batch.decoder_input_ids, batch.labels)
        errors = {t: (whisper_losses(model, trimmed, t) - losses).abs() for t in (0, 64, 1400)}
        assert torch.all(errors[1400] < 1e-3)
        assert torch.all(errors[64] < 0.5 * errors[0])

    @torch.inference_mode()
    def test_padding_partners_do_not_matter(self, tiny: nn.Module) -> None:
        texts = [[10], [20, 21, 22, 23, 24, 25], [30, 31]]
        together = _batch(40, texts)

        losses = whisper_losses(tiny, together, tail_tokens=4)

        for row, text in enumerate(texts):
            alone = WhisperBatch(together.features[row : row + 1], *whisper_labels(PROMPT, [text], END))
            assert float(whisper_losses(tiny, alone, tail_tokens=4)[0]) == pytest.approx(float(losses[row]), abs=1e-5)

    @torch.inference_mode()
    def test_order_of_the_batch_does_not_matter(self, tiny: nn.Module) -> None:
        batch = _batch(40, [[10], [20, 21, 22], [30, 31]])
        order = torch.tensor([2, 0, 1])
        permuted = WhisperBatch(batch.features[order], batch.decoder_input_ids[order], batch.labels[order])

        torch.testing.assert_close(whisper_losses(tiny, permuted), whisper_losses(tiny, batch)[order])

    @torch.inference_mode()
    def test_an_example_without_labels_has_loss_zero(self, tiny: nn.Module) -> None:
        batch = _batch(40, [[10, 11], [20, 21]])
        batch.labels[0] = IGNORE

        losses = whisper_losses(tiny, batch)

        assert losses[0] == 0.0
        assert losses[1] > 0.0

    @torch.inference_mode()
    @pytest.mark.parametrize("tail_tokens", [27, 28, 1000])
    def test_one_token_a_tail_position_is_the_full_window(self, tiny: nn.Module, tail_tokens: int) -> None:
        features = _speech_then_silence(18, 2 * FULL)
        texts = [[10, 11, 12], [20]]
        full = WhisperBatch(features, *whisper_labels(PROMPT, texts, END))
        trimmed = WhisperBatch(features[:, :, :28], full.decoder_input_ids, full.labels)

        losses = whisper_losses(tiny, trimmed, tail_tokens)

        torch.testing.assert_close(losses, whisper_losses(tiny, full), rtol=0, atol=1e-5)
        assert (losses - whisper_losses(tiny, trimmed, 0)).abs().max() > 0.05


class TestEmbedWindow:
    @torch.inference_mode()
    @pytest.mark.parametrize("frames", [12, 28, 30, 78])
    @pytest.mark.parametrize("extra", [0, 1000])
    def test_enough_tail_tokens_give_the_full_window(self, tiny: nn.Module, frames: int, extra: int) -> None:
        features = _speech_then_silence(frames - 8, 2 * FULL)
        tail = FULL - (frames // 2 - EDGE_POSITIONS) - 1  # the last position has a token of its own

        found = embed_window(tiny.model.encoder, features[:, :, :frames], tail + extra)
        expected = embed_window(tiny.model.encoder, features, 0)

        assert found.merge is not None
        assert torch.equal(found.merge.picked, torch.arange(FULL))
        assert torch.equal(found.merge.bias, torch.zeros(1, 1, 1, FULL))
        torch.testing.assert_close(found.hidden, expected.hidden, rtol=0, atol=1e-6)
        assert expected.merge is expected.bias is None

    @torch.inference_mode()
    @pytest.mark.parametrize("tail_tokens", [1, 2, 3, 7, 27])
    def test_the_bias_counts_every_position_of_the_window(self, tiny: nn.Module, tail_tokens: int) -> None:
        encoder = tiny.model.encoder

        found = run_layers(encoder, embed_window(encoder, _speech_then_silence(20, 28), tail_tokens), 0, 1)

        assert found.bias is not None
        counts = found.bias.exp().round().reshape(-1)
        assert found.hidden.shape[1] == 12 + tail_tokens + 1 == len(counts)
        assert counts.sum() == FULL
        assert torch.all(counts[:12] == 1)
        assert counts[12:-1].max() - counts[12:-1].min() <= 1
        assert counts[-1] == 1

    @torch.inference_mode()
    @pytest.mark.parametrize("tail_tokens", [1, 5, 27])
    def test_the_first_layer_attends_to_the_whole_window(self, tiny: nn.Module, tail_tokens: int) -> None:
        features, encoder = _speech_then_silence(20, 2 * FULL), tiny.model.encoder

        start = embed_window(encoder, features[:, :, :28], tail_tokens)
        found = run_layers(encoder, start, 0, 1)

        assert start.merge is not None
        expected = run_layers(encoder, embed_window(encoder, features, 0), 0, 1).hidden[:, start.merge.picked]
        torch.testing.assert_close(found.hidden, expected, rtol=0, atol=1e-5)

    @torch.inference_mode()
    def test_sinks_keep_a_token_of_their_own_and_the_rest_is_grouped(
        self, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sinks = (3, 20, 21, 33, FULL - 1)  # the first is speech, the last a token of its own anyway
        monkeypatch.setattr(tiny.model.encoder, "silent_sinks", sinks, raising=False)

        merge = embed_window(tiny.model.encoder, _speech_then_silence(20, 28), 4).merge

        assert merge is not None
        counts = dict(zip(merge.picked.tolist(), merge.bias.exp().round().flatten().tolist(), strict=True))
        assert list(counts) == sorted(counts)
        assert len(counts) == 12 + 3 + 4 + 1
        assert all(counts[at] == 1 for at in (*range(12), 20, 21, 33, FULL - 1))
        assert sum(counts.values()) == FULL

    @torch.inference_mode()
    @pytest.mark.parametrize("tail_tokens", [1, 5, 27])
    def test_the_last_token_is_the_last_position_of_the_window(self, tiny: nn.Module, tail_tokens: int) -> None:
        features = _speech_then_silence(20, 2 * FULL)

        found = embed_window(tiny.model.encoder, features[:, :, :28], tail_tokens)

        window = embed_window(tiny.model.encoder, features, 0)
        torch.testing.assert_close(found.hidden[:, -1], window.hidden[:, -1], rtol=0, atol=1e-6)
        # it sees the padding, unlike the silence before it
        positions = tiny.model.encoder.embed_positions.weight
        silence = window.hidden[:, -2] - positions[-2]
        assert (found.hidden[:, -1] - positions[-1] - silence).abs().max() > 0.05

    @torch.inference_mode()
    def test_no_tail_tokens_cut_the_window_off(self, tiny: nn.Module) -> None:
        found = embed_window(tiny.model.encoder, _speech_then_silence(20, 28), 0)

        assert found.hidden.shape[1] == 14
        assert found.bias is None

    @torch.inference_mode()
    def test_merged_tokens_approach_the_full_window_as_they_grow(self, tiny: nn.Module) -> None:
        features = _speech_then_silence(18, 2 * FULL)
        full = WhisperBatch(features, *whisper_labels(PROMPT, [[10, 11, 12], [20]], END))
        trimmed = WhisperBatch(features[:, :, :28], full.decoder_input_ids, full.labels)
        exact = whisper_losses(tiny, full)

        errors = [float((whisper_losses(tiny, trimmed, t) - exact).abs().max()) for t in (0, 4, 8, 14, 20, 27)]

        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 2 * errors[1]
        assert errors[0] > 8 * errors[2]
        assert errors[-1] < 1e-5
