"""Whisper's losses without a text: its own hypothesis, and the same trusted tokens on both sides of a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from references import token_cross_entropy, token_entropy

from zo_common.errors import ConfigError
from zo_common.estimator.curvature import MOST_CLASSES, OutputTrace
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.models.load import load_model
from zo_common.models.objectives import (
    IGNORE,
    confident_labels,
    entropy,
    masked_mean,
)
from zo_common.models.whisper.frozen_prefix import FrozenPrefix
from zo_common.models.whisper.hypothesis_loss import HypothesisLoss
from zo_common.models.whisper.loss import WhisperLoss
from zo_common.models.whisper.objectives import WhisperBatch, whisper_labels, whisper_losses
from zo_common.models.whisper.transcribe import greedy_tokens, transcribe


@pytest.fixture(scope="module")
def whisper(tiny_whisper_dir: Path) -> tuple[Any, Any]:
    """A tiny random Whisper, made opinionated, and its processor."""
    model, processor = load_model(str(tiny_whisper_dir))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, processor


@pytest.fixture
def batch(whisper: tuple[Any, Any]) -> WhisperBatch:
    """Two windows of 3 s with made-up hypotheses of different length."""
    features = torch.randn(2, 80, 300, generator=torch.Generator().manual_seed(1))
    end = int(whisper[1].tokenizer.eos_token_id)
    return WhisperBatch(features, *whisper_labels([end + 1, end + 2], [[50, 60, 70, 80], [90]], end))


@torch.inference_mode()
def _logits(model: Any, batch: WhisperBatch) -> torch.Tensor:
    """Teacher-forced logits (B, L, vocabulary)."""
    from zo_common.models.whisper.forward import decode, encode

    return model.proj_out(decode(model, batch.decoder_input_ids, encode(model, batch.features, 64)))


def _log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(dim=2).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]


def _loss(model: Any, batch: WhisperBatch, trained: list[str] | None = None, **options: Any) -> HypothesisLoss:
    return HypothesisLoss(model, batch, FrozenPrefix(model, trained or ["model.encoder.conv1.weight"]), **options)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["labelled", "hypothesis"])
def test_a_trace_is_told_the_likeliest_classes_of_what_counts(
    whisper: tuple[Any, Any], batch: WhisperBatch, kind: str
) -> None:
    model, _ = whisper
    logits = _logits(model, batch)
    counted = batch.labels != IGNORE
    if kind == "labelled":
        loss: WhisperLoss = WhisperLoss(model, batch, FrozenPrefix(model, ["model.encoder.conv1.weight"]))
    else:  # the utterance that the model is surer of is trusted alone
        means = masked_mean(_log_probs(logits, batch.labels), counted).exp()
        loss = _loss(model, batch, min_utterance=float(means.mean())).freeze()
        counted &= (means >= means.mean())[:, None]
    loss.trace = trace = OutputTrace(passes=1)

    losses = loss()

    expected = logits[counted].log_softmax(dim=1).topk(MOST_CLASSES, dim=1).values
    torch.testing.assert_close(torch.from_numpy(trace.log_probs[0]), expected)
    assert trace.rows.tolist() == counted.nonzero()[:, 0].tolist()
    # a position counts as much as its loss does in the mean over the batch
    of_positions = -_log_probs(logits, batch.labels)[counted].double().numpy()
    assert float(trace.weights @ of_positions) == pytest.approx(float(losses.mean()), rel=1e-4)


@torch.inference_mode()
def test_entropy_has_no_curvature_to_tell(whisper: tuple[Any, Any], batch: WhisperBatch) -> None:
    loss = _loss(whisper[0], batch, objective="entropy")
    loss.trace = OutputTrace(passes=1)

    with pytest.raises(ConfigError, match="whose curvature is no Fisher matrix"):
        loss()


@torch.inference_mode()
def test_self_training_is_the_cross_entropy_of_the_hypothesis(whisper: tuple[Any, Any], batch: WhisperBatch) -> None:
    model, _ = whisper

    losses = _loss(model, batch)()

    torch.testing.assert_close(losses, whisper_losses(model, batch))
    torch.testing.assert_close(losses, token_cross_entropy(_logits(model, batch), batch.labels))


@torch.inference_mode()
def test_entropy_is_that_of_the_hypothesis_positions(whisper: tuple[Any, Any], batch: WhisperBatch) -> None:
    model, _ = whisper

    losses = _loss(model, batch, objective="entropy")()

    torch.testing.assert_close(losses, token_entropy(_logits(model, batch), batch.labels != IGNORE))


@pytest.mark.parametrize("objective", ["self-training", "entropy"])
@torch.inference_mode()
def test_only_trusted_tokens_count(whisper: tuple[Any, Any], batch: WhisperBatch, objective: str) -> None:
    model, _ = whisper
    logits = _logits(model, batch)
    log_probs = _log_probs(logits, batch.labels)
    floor = float(log_probs[0][batch.labels[0] != IGNORE].exp().median())
    trusted = confident_labels(log_probs, batch.labels, floor) != IGNORE
    values = entropy(logits) if objective == "entropy" else -log_probs

    loss = _loss(model, batch, objective=objective, min_token=floor * 0.999)
    losses = loss()

    assert torch.equal(loss.trusted, trusted)
    expected = [
        row[mask].mean() if mask.any() else torch.tensor(0.0) for row, mask in zip(values, trusted, strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(expected))


@torch.inference_mode()
def test_an_utterance_that_is_not_trusted_has_loss_zero(whisper: tuple[Any, Any], batch: WhisperBatch) -> None:
    model, _ = whisper
    log_probs = _log_probs(_logits(model, batch), batch.labels)
    means = [row[labels != IGNORE].mean().exp() for row, labels in zip(log_probs, batch.labels, strict=True)]
    between = float(sum(means)) / 2

    losses = _loss(model, batch, min_utterance=between)()

    assert [bool(value > 0) for value in losses] == [bool(mean >= between) for mean in means]
    assert float(losses.min()) == 0.0


@torch.inference_mode()
def test_what_is_trusted_stays_so(whisper: tuple[Any, Any], batch: WhisperBatch) -> None:
    model, _ = whisper
    log_probs = _log_probs(_logits(model, batch), batch.labels)
    floor = float(log_probs[0][batch.labels[0] != IGNORE].exp().median())
    state = LatticeState(model, "decoder", threads=1)
    loss = _loss(model, batch, [t.name for t in state.tensors], min_token=floor)
    assert loss.trusted is None
    frozen = loss.freeze().trusted
    unperturbed = loss()

    state.apply([Update(1, 0.2)])
    moved = loss()
    afresh = _loss(model, batch, min_token=floor).freeze().trusted
    state.apply([Update(1, 0.2)], sign=-1)

    assert torch.equal(loss.trusted, frozen)
    assert not torch.equal(afresh, frozen)
    assert not torch.equal(moved, unperturbed)
    assert torch.equal(loss(), unperturbed)


def test_a_step_runs_on_it(whisper: tuple[Any, Any], batch: WhisperBatch) -> None:
    model, _ = whisper
    state = LatticeState(model, "norm", threads=1)
    loss = _loss(model, batch, [t.name for t in state.tensors])

    result = zo_step(state, loss, 1, 0, EstimatorConfig(num_queries=2), 1e-9)

    assert result.per_example.shape == (2, 2)
    assert result.projected_grads.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "confusion"}, "objective is 'confusion', expected one of self-training, entropy"),
        ({"min_token": 1.5}, r"min-token is 1\.5"),
        ({"min_utterance": float("nan")}, "min-utterance is nan"),
    ],
)
def test_settings_are_checked(
    whisper: tuple[Any, Any], batch: WhisperBatch, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _loss(whisper[0], batch, **options)


def test_greedy_tokens_spell_the_transcripts(whisper: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = whisper
    windows = list(torch.randn(3, 80, 3000, generator=torch.Generator().manual_seed(2)))
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **o: generate(*a, **{**o, "max_new_tokens": 6}))

    tokens = greedy_tokens(model, processor, windows, batch_size=2)

    texts = [processor.tokenizer.decode(row).strip() for row in tokens]
    assert texts == transcribe(model, processor, windows, batch_size=2)
    assert all(max(row, default=0) < processor.tokenizer.eos_token_id for row in tokens)
    assert any(tokens)
