"""Losses of CTC batches: supervised as transformers' own, unsupervised on frames that stay the same within a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_ctc import BLANK, CHARACTERS, KINDS, NORMS, noise_waves, tiny_ctc
from torch.nn.functional import ctc_loss
from transformers import Wav2Vec2FeatureExtractor

from zo_common.errors import ConfigError, DataError
from zo_common.estimator.curvature import OutputTrace
from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.models.ctc.forward import ctc_logits, frame_lengths
from zo_common.models.ctc.loss import AdaptationLoss, CTCBatch, CTCLoss, SutaSettings, ctc_batch
from zo_common.models.ctc.objectives import confidence_weights, frame_mask, non_blank_mask, suta_losses

EXTRACTOR = Wav2Vec2FeatureExtractor()
FAMILIES = [(kind, norm) for kind in KINDS for norm in NORMS]
LABELS = [[5, 6, 6, 7], [8], [9, 4, 9]]


@pytest.fixture(params=FAMILIES, ids="-".join)
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model of each family."""
    return tiny_ctc(*request.param)


def _batch(labels: list[list[int]] | None = None, *samples: int) -> CTCBatch:
    return ctc_batch(EXTRACTOR, noise_waves(*(samples or (8000, 3200, 5600))), labels)


class TestBatch:
    def test_labels_are_padded(self) -> None:
        batch = _batch(LABELS)

        assert batch.labels is not None
        assert batch.labels.tolist() == [[5, 6, 6, 7], [8, -100, -100, -100], [9, 4, 9, -100]]
        assert batch.lengths.tolist() == [8000, 3200, 5600]
        assert batch.values.shape == (3, 8000)

    def test_no_text_and_no_characters(self) -> None:
        empty = _batch([[], [], []])

        assert _batch().labels is None
        assert empty.labels is not None
        assert empty.labels.shape == (3, 0)

    def test_there_is_a_text_for_every_wave(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            _batch(LABELS[:2])

    def test_moves_as_a_whole(self) -> None:
        moved = _batch(LABELS).to(torch.device("meta"))

        assert moved.labels is not None
        assert {t.device.type for t in (moved.values, moved.lengths, moved.labels)} == {"meta"}
        assert _batch().to(torch.device("meta")).labels is None


class TestCTCLoss:
    @torch.inference_mode()
    def test_a_trace_is_told_all_classes_of_the_frames_that_count(self, model: Any) -> None:
        batch = _batch([*LABELS[:2], [4] * 200])  # the last cannot be aligned: its loss is 0 whatever the weights
        logits, frames = ctc_logits(model, batch.values, batch.lengths)
        loss = CTCLoss(model, batch)
        loss.trace = trace = OutputTrace(passes=1)

        loss()

        mask = frame_mask(frames, logits.shape[1])
        mask[2] = False
        torch.testing.assert_close(torch.from_numpy(trace.log_probs[0]), logits[mask].log_softmax(dim=1))
        assert trace.rows.tolist() == [0] * int(frames[0]) + [1] * int(frames[1])
        assert trace.weights == pytest.approx([1 / 4 / 3] * int(frames[0]) + [1 / 3] * int(frames[1]))

    @torch.inference_mode()
    def test_equals_transformers_own_loss_of_each_utterance_a_character(self, model: Any) -> None:
        batch = _batch(LABELS, 8000, 8000, 8000)
        model.config.ctc_loss_reduction = "sum"

        losses = CTCLoss(model, batch)()

        for row, label in enumerate(LABELS):
            alone = model(batch.values[row : row + 1], labels=torch.tensor([label])).loss / len(label)
            assert float(losses[row]) == pytest.approx(float(alone), rel=1e-4)

    @torch.inference_mode()
    def test_padding_changes_nothing_in_layer_norm_models(self) -> None:
        model, batch = tiny_ctc(norm="layer"), _batch(LABELS)

        losses = CTCLoss(model, batch)()

        for row, wave in enumerate(noise_waves(8000, 3200, 5600)):
            alone = CTCLoss(model, ctc_batch(EXTRACTOR, [wave], [LABELS[row]]))()
            assert float(losses[row]) == pytest.approx(float(alone), rel=1e-4)

    def test_a_batch_needs_labels(self) -> None:
        with pytest.raises(ConfigError, match="no labels"):
            CTCLoss(tiny_ctc(), _batch())

    @pytest.mark.parametrize("label", [BLANK, len(CHARACTERS)])
    def test_labels_of_another_vocabulary_are_refused(self, label: int) -> None:
        with pytest.raises(ConfigError, match=rf"label {label} is the blank or beyond the model's {len(CHARACTERS)}"):
            CTCLoss(tiny_ctc(), _batch([[5, label], [6], [7]]))

    def test_an_utterance_without_a_frame_is_refused(self) -> None:
        loss = CTCLoss(tiny_ctc(), _batch([[5], [6]], 8000, 300))

        with pytest.raises(DataError, match="utterance 1 of the batch has 300 samples"):
            loss()

    @torch.inference_mode()
    def test_lower_precision_is_of_the_logits_alone(self, model: Any) -> None:
        """How far random weights carry rounding is the processor's; the loss of its logits is PyTorch's, in float32."""
        batch = _batch(LABELS)
        with torch.autocast("cpu", torch.bfloat16):
            logits, frames = ctc_logits(model, batch.values, batch.lengths)
        lengths = torch.tensor([len(label) for label in LABELS])
        log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
        characters = torch.tensor([character for label in LABELS for character in label])

        low = CTCLoss(model, batch, "bfloat16")()

        assert low.dtype == torch.float32
        assert not torch.equal(low, CTCLoss(model, batch)())
        expected = ctc_loss(log_probs, characters, frames, lengths, blank=BLANK, reduction="none") / lengths
        torch.testing.assert_close(low, expected)

    def test_a_step_measures_the_gradient(self) -> None:
        model = tiny_ctc()
        state = LatticeState(model, "norms", threads=1)
        batch = _batch(LABELS)
        loss = CTCLoss(model, batch)
        before = state.checksum()

        result = zo_step(state, loss, 1, 0, EstimatorConfig(num_queries=64), 1e-3)

        assert state.checksum() != before
        squares = float(np.square(result.projected_grads.astype(np.float64)).mean())
        _undo_all(state, result.projected_grads, 1e-3)
        assert state.checksum() == before
        for tensor in state.tensors:
            model.get_parameter(tensor.name).requires_grad_()
        loss().mean().backward()
        # for ±1 directions, the mean square of projections is the squared gradient
        gradient = sum(float(model.get_parameter(t.name).grad.square().sum()) for t in state.tensors)
        assert squares == pytest.approx(gradient, rel=0.6)
        model.requires_grad_(False)


def _undo_all(state: LatticeState, grads: np.ndarray, learning_rate: float) -> None:
    from zo_common.directions.seeds import direction_seed
    from zo_common.estimator.step import step_updates

    seeds = [direction_seed(1, 0, query) for query in range(len(grads))]
    state.apply(step_updates(seeds, grads, learning_rate), sign=-1)


class TestAdaptationLoss:
    @torch.inference_mode()
    def test_is_sutas_objective_of_the_frames_of_the_moment(self, model: Any) -> None:
        batch = _batch()
        logits, frames = ctc_logits(model, batch.values, batch.lengths)
        mask = non_blank_mask(logits, frames, BLANK)
        weights = confidence_weights(logits, frame_mask(frames, logits.shape[1]), 2.5)

        loss = AdaptationLoss(model, batch)

        assert loss.mask is None
        torch.testing.assert_close(loss(), suta_losses(logits, mask, weights=weights))
        assert torch.equal(loss.mask, mask)
        assert not mask[1, int(frame_lengths(model, batch.lengths)[1]) :].any()

    def test_settings_reach_the_objective(self) -> None:
        model, batch = tiny_ctc(), _batch()
        logits, frames = ctc_logits(model, batch.values, batch.lengths)
        mask = non_blank_mask(logits, frames, BLANK)
        settings = SutaSettings(temperature=1.0, entropy_weight=0.5, reweight=False, confusion_of_blanks=False)

        losses = AdaptationLoss(model, batch, settings)()

        torch.testing.assert_close(losses, suta_losses(logits, mask, 1.0, 0.5, reweight=False))
        assert not torch.allclose(losses, AdaptationLoss(model, batch)())

    @torch.inference_mode()
    def test_frames_stay_as_they_were_decided(self) -> None:
        model, batch = tiny_ctc(), _batch()
        state = LatticeState(model, "all", threads=1)
        loss = AdaptationLoss(model, batch).freeze()
        frozen = loss.mask
        assert frozen is not None
        unperturbed = loss()

        state.apply([Update(1, 0.05)])
        logits, frames = ctc_logits(model, batch.values, batch.lengths)
        moved = loss()

        assert torch.equal(loss.mask, frozen)
        assert not torch.equal(non_blank_mask(logits, frames, BLANK), frozen)
        state.apply([Update(1, 0.05)], sign=-1)
        assert torch.equal(loss(), unperturbed)
        assert not torch.equal(moved, unperturbed)

    def test_both_sides_of_every_query_see_the_same_frames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from zo_common.models.ctc import loss as ctc_loss

        model, batch = tiny_ctc(), _batch()
        seen: list[torch.Tensor] = []
        original = ctc_loss.suta_losses
        monkeypatch.setattr(ctc_loss, "suta_losses", lambda *a, **o: (seen.append(a[1]), original(*a, **o))[1])
        state = LatticeState(model, "all", threads=1)

        zo_step(state, AdaptationLoss(model, batch), 1, 0, EstimatorConfig(num_queries=3, epsilon=0.05), 1e-3)

        assert len(seen) == 6
        assert all(mask is seen[0] for mask in seen)
        assert seen[0].any()
        assert not seen[0].all()

    def test_a_query_measures_sutas_own_gradient(self) -> None:
        """Frozen weights make the difference of two losses what back-propagation through detached weights gives."""
        model, batch = tiny_ctc(), _batch()
        state = LatticeState(model, "norms", threads=1)
        loss = AdaptationLoss(model, batch).freeze()
        epsilon = 2**-10

        def along(sign: int) -> np.ndarray:
            with torch.inference_mode():
                state.apply([Update(7, sign * epsilon)])
                values = loss().double().numpy()
                state.apply([Update(7, sign * epsilon)], sign=-1)
            return values

        measured = (along(1) - along(-1)) / (2 * epsilon)
        clean = {t.name: t.weight.clone() for t in state.tensors}
        state.apply([Update(7, epsilon)])
        direction = {t.name: torch.sign(t.weight - clean[t.name]) for t in state.tensors}
        state.apply([Update(7, epsilon)], sign=-1)
        for name in direction:
            model.get_parameter(name).requires_grad_()
        fresh = AdaptationLoss(model, batch)()  # its weights are detached, as in the reference implementation
        for row, value in enumerate(fresh):
            model.zero_grad()
            value.backward(retain_graph=True)
            expected = sum(float((model.get_parameter(n).grad * z).sum()) for n, z in direction.items())
            assert float(measured[row]) == pytest.approx(expected, rel=0.02, abs=2e-3)
        model.requires_grad_(False)

    def test_examples_do_not_see_each_other_in_layer_norm_models(self) -> None:
        model = tiny_ctc(norm="layer")
        waves = noise_waves(8000, 3200, 5600)

        together = AdaptationLoss(model, ctc_batch(EXTRACTOR, waves))()

        for row, wave in enumerate(waves):
            alone = AdaptationLoss(model, ctc_batch(EXTRACTOR, [wave]))()
            assert float(together[row]) == pytest.approx(float(alone), rel=1e-4)

    def test_an_utterance_heard_as_silence_is_finite(self) -> None:
        model, batch = tiny_ctc(), _batch()
        model.lm_head.bias[BLANK] += 1000.0

        loss = AdaptationLoss(model, batch)

        assert torch.isfinite(loss()).all()
        assert loss.mask is not None
        assert not loss.mask.any()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"temperature": 0.0}, r"temperature is 0\.0"),
            ({"temperature": float("inf")}, "temperature is inf"),
            ({"entropy_weight": 1.1}, r"entropy-weight is 1\.1"),
            ({"entropy_weight": float("nan")}, "entropy-weight is nan"),
        ],
    )
    def test_settings_are_checked(self, setting: dict[str, float], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            SutaSettings(**setting)
