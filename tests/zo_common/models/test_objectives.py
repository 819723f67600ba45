"""The losses, against hand-computed values and against `transformers`' own forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from references import token_cross_entropy, token_entropy
from torch import nn

from zo_common.estimator.settings import EstimatorConfig
from zo_common.estimator.step import zo_step
from zo_common.lattice.state import LatticeState
from zo_common.models.objectives import IGNORE, confident_labels

Models = Callable[..., nn.Module]


class TestTokenCrossEntropy:
    def test_hand_computed_values_with_padding(self) -> None:
        logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.3, 0.5], [1.0, 1.0, 1.0]]]))
        labels = torch.tensor([[0, 2], [1, IGNORE]])

        losses = token_cross_entropy(logits, labels)

        expected = [-(math.log(0.5) + math.log(0.8)) / 2, -math.log(0.3)]
        assert losses.tolist() == pytest.approx(expected, rel=1e-6)
        assert losses.dtype == torch.float32

    def test_an_example_without_labels_has_loss_zero(self) -> None:
        losses = token_cross_entropy(torch.randn(2, 3, 5), torch.tensor([[IGNORE] * 3, [1, 2, 3]]))

        assert losses[0] == 0.0
        assert losses[1] > 0.0

    def test_padding_logits_do_not_matter(self) -> None:
        logits, labels = torch.randn(1, 4, 5), torch.tensor([[1, IGNORE, 2, IGNORE]])
        altered = logits.clone()
        altered[:, [1, 3]] = 1e4

        assert torch.equal(token_cross_entropy(altered, labels), token_cross_entropy(logits, labels))

    def test_half_precision_logits_are_summed_in_float32(self) -> None:
        logits, labels = torch.randn(2, 3, 5).half(), torch.randint(0, 5, (2, 3))

        losses = token_cross_entropy(logits, labels)

        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, token_cross_entropy(logits.float(), labels))


class TestTokenEntropy:
    def test_hand_computed_values_with_padding(self) -> None:
        logits = torch.log(torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]], [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]]))
        mask = torch.tensor([[True, True], [True, False]])

        entropies = token_entropy(logits, mask)

        assert entropies.tolist() == pytest.approx([1.25 * math.log(2), 0.0])
        assert token_entropy(logits, ~mask)[0] == 0.0

    def test_a_flat_distribution_has_the_entropy_of_its_size_at_any_temperature(self) -> None:
        logits, mask = torch.zeros(1, 2, 50), torch.ones(1, 2, dtype=torch.bool)

        for temperature in (0.5, 1.0, 2.5):
            assert float(token_entropy(logits, mask, temperature)) == pytest.approx(math.log(50))

    def test_the_gradient_is_that_of_the_plain_formula(self) -> None:
        logits, mask = torch.randn(2, 3, 5, requires_grad=True), torch.tensor([[True, False, True], [True, True, True]])
        log_probs = logits.log_softmax(dim=2)
        plain = [-(log_probs[row].exp() * log_probs[row]).sum(dim=1)[mask[row]].mean() for row in range(2)]

        gradients = [torch.autograd.grad(v, logits)[0] for v in (token_entropy(logits, mask).sum(), sum(plain))]

        torch.testing.assert_close(*gradients)


class TestConfidentLabels:
    LABELS = torch.tensor([[IGNORE, 5, 6, 7], [IGNORE, 5, 6, IGNORE]])
    LOG_PROBS = torch.log(torch.tensor([[0.0, 0.9, 0.4, 0.6], [1.0, 0.5, 0.125, 1.0]]))

    def test_without_floors_every_label_stays(self) -> None:
        assert torch.equal(confident_labels(self.LOG_PROBS, self.LABELS), self.LABELS)

    def test_unlikely_tokens_are_dropped(self) -> None:
        found = confident_labels(self.LOG_PROBS, self.LABELS, min_token=0.5)

        assert found.tolist() == [[IGNORE, 5, IGNORE, 7], [IGNORE, 5, IGNORE, IGNORE]]

    @pytest.mark.parametrize(("floor", "kept"), [(0.24, [True, True]), (0.26, [True, False]), (0.7, [False, False])])
    def test_unlikely_utterances_are_dropped(self, floor: float, kept: list[bool]) -> None:
        # geometric means: (0.9·0.4·0.6)^(1/3) = 0.6, (0.5·0.125)^(1/2) = 0.25
        found = confident_labels(self.LOG_PROBS, self.LABELS, min_utterance=floor)

        assert [torch.equal(row, labels) for row, labels in zip(found, self.LABELS, strict=True)] == kept
        assert [bool((row == IGNORE).all()) for row in found] == [not k for k in kept]

    def test_self_training_on_what_is_left(self) -> None:
        logits = torch.randn(1, 4, 9)
        labels = torch.tensor([[IGNORE, 5, 6, 7]])
        log_probs = logits.log_softmax(dim=2).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        floor = float(log_probs[0, 1:].exp().median())

        loss = token_cross_entropy(logits, confident_labels(log_probs, labels, floor))

        kept = sorted(log_probs[0, 1:].tolist())[1:]
        assert float(loss) == pytest.approx(-sum(kept) / 2)


def test_any_module_and_loss_trains_with_forward_passes_alone(small_model: Models) -> None:
    model = small_model(hidden=16)
    inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(4))
    targets = torch.stack([inputs.sum(dim=1), inputs[:, 0] * inputs[:, 1]], dim=1)
    state = LatticeState(model, "all", "rms", threads=1)
    config = EstimatorConfig(num_queries=8, epsilon=1e-2)

    def losses() -> torch.Tensor:
        return (model(inputs) - targets).square().mean(dim=1)

    before = float(losses().detach().mean())
    for step in range(150):
        zo_step(state, losses, 12, step, config, 0.05)

    assert float(losses().detach().mean()) < 0.5 * before
