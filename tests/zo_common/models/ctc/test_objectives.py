"""CTC, entropy and class confusion against hand-computed values, brute force, matrices and autograd."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from zo_common.models.ctc.objectives import (
    alignable,
    class_confusion,
    confidence_weights,
    ctc_losses,
    frame_entropy,
    frame_mask,
    non_blank_mask,
    suta_losses,
)

BLANK = 0


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


def _by_enumeration(logits: torch.Tensor, label: tuple[int, ...], blank: int) -> float:
    """−log of the summed probability of every path that reads as the label."""
    probs = logits.double().softmax(dim=1)
    frames, classes = probs.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=frames):
        if _collapse(path, blank) == label:
            total += math.prod(float(probs[t, c]) for t, c in enumerate(path))
    return -math.log(total)


class TestCTC:
    def test_two_frames_and_one_character_by_hand(self) -> None:
        probs = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]])

        losses = ctc_losses(probs.log(), torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1]), BLANK)

        assert losses.dtype == torch.float32
        assert losses.tolist() == pytest.approx([-math.log(0.3 * 0.5 + 0.6 * 0.4 + 0.3 * 0.4)], rel=1e-6)

    @pytest.mark.parametrize("blank", [0, 2])
    def test_every_path_is_counted_once(self, blank: int) -> None:
        logits = _logits(5, 5, 3)
        labels = [(1,), (1, 1), (1, 1, 1), (1, 0 if blank else 2), ()]
        padded = torch.tensor([[*label, *[-100] * (3 - len(label))] for label in labels])
        lengths, label_lengths = torch.tensor([5, 4, 5, 2, 3]), torch.tensor([len(label) for label in labels])

        losses = ctc_losses(logits, lengths, padded, label_lengths, blank)

        expected = [
            _by_enumeration(logits[row, : int(lengths[row])], label, blank) / (len(label) or int(lengths[row]))
            for row, label in enumerate(labels)
        ]
        assert losses.tolist() == pytest.approx(expected, rel=1e-6)

    def test_equal_torchs_own_sum_divided_by_the_characters(self) -> None:
        logits, lengths = _logits(3, 30, 7), torch.tensor([30, 21, 9])
        labels, label_lengths = torch.randint(1, 7, (3, 5)), torch.tensor([5, 3, 1])

        losses = ctc_losses(logits, lengths, labels, label_lengths, BLANK)

        sums = F.ctc_loss(
            logits.log_softmax(dim=2).transpose(0, 1), labels, lengths, label_lengths, blank=BLANK, reduction="none"
        )
        torch.testing.assert_close(losses, sums / label_lengths, rtol=1e-5, atol=1e-6)

    def test_a_long_utterance_weighs_as_much_as_a_short_one(self) -> None:
        logits = torch.zeros(1, 40, 4)
        logits[0, range(40), [1, 0, 2, 0] * 10] = 3.0
        labels = torch.tensor([[1, 2] * 10])

        short = ctc_losses(logits, torch.tensor([8]), labels, torch.tensor([4]), BLANK)
        long = ctc_losses(logits, torch.tensor([40]), labels, torch.tensor([20]), BLANK)

        assert float(long) == pytest.approx(float(short), rel=0.1)

    def test_an_impossible_alignment_says_nothing(self) -> None:
        logits = _logits(4, 4, 3).requires_grad_()
        labels = torch.tensor([[1, 1, 1], [1, 2, 1], [1, 1, -100], [1, 2, 2]])
        lengths, label_lengths = torch.tensor([4, 2, 2, 4]), torch.tensor([3, 3, 2, 3])

        losses = ctc_losses(logits, lengths, labels, label_lengths, BLANK)
        losses.sum().backward()

        assert alignable(lengths, labels, label_lengths).tolist() == [False, False, False, True]
        assert losses[:3].tolist() == [0.0, 0.0, 0.0]
        assert losses[3] > 0
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()
        assert not logits.grad[:3].any()

    def test_padding_of_the_labels_takes_no_frames(self) -> None:
        labels = torch.tensor([[1, 2, -100, -100, -100], [1, 1, 1, 1, 1], [2, 1, 1, 1, 1]])

        possible = alignable(torch.tensor([2, 3, 2]), labels, torch.tensor([2, 2, 2]))

        assert possible.tolist() == [True, True, True]

    def test_a_logit_that_is_not_a_number_is_not_hidden(self) -> None:
        logits = _logits(2, 4, 3)
        logits[0, 1, 1] = float("nan")

        losses = ctc_losses(logits, torch.tensor([4, 4]), torch.tensor([[1], [1]]), torch.tensor([1, 1]), BLANK)

        assert losses.isnan().tolist() == [True, False]

    def test_padding_and_neighbours_do_not_matter(self) -> None:
        logits, labels = _logits(2, 9, 4), torch.tensor([[1, 2, 3], [3, 1, 0]])
        lengths, label_lengths = torch.tensor([6, 9]), torch.tensor([2, 3])
        altered, relabelled = logits.clone(), labels.clone()
        altered[0, 6:], relabelled[0, 2] = 1e4, -100

        losses = ctc_losses(logits, lengths, labels, label_lengths, 0)
        alone = ctc_losses(logits[:1, :6], lengths[:1], labels[:1, :2], label_lengths[:1], 0)

        assert torch.equal(ctc_losses(altered, lengths, relabelled, label_lengths, 0), losses)
        assert torch.equal(alone[0], losses[0])

    def test_no_example_has_any_character(self) -> None:
        logits = _logits(2, 4, 3)

        losses = ctc_losses(
            logits, torch.tensor([4, 2]), torch.empty(2, 0, dtype=torch.int64), torch.tensor([0, 0]), BLANK
        )

        silence = -logits.log_softmax(dim=2)[:, :, BLANK]
        torch.testing.assert_close(losses, torch.stack([silence[0].mean(), silence[1, :2].mean()]))


def test_masks_of_lengths_and_of_characters() -> None:
    logits = torch.zeros(2, 4, 3)
    for row, classes in enumerate([[0, 1, 0, 2], [2, 2, 0, 1]]):
        for frame, character in enumerate(classes):
            logits[row, frame, character] = 1.0
    lengths = torch.tensor([4, 2])

    assert frame_mask(lengths, 4).tolist() == [[True] * 4, [True, True, False, False]]
    assert non_blank_mask(logits, lengths, 0).tolist() == [[False, True, False, True], [True, True, False, False]]
    assert non_blank_mask(logits, lengths, 2).tolist() == [[True, True, True, False], [False] * 4]


class TestEntropy:
    def test_hand_computed_values(self) -> None:
        logits = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]]).log()
        mask = torch.tensor([[True, True, False]])

        assert frame_entropy(logits, mask).tolist() == pytest.approx([math.log(2) / 2])
        assert frame_entropy(logits, ~mask).tolist() == pytest.approx([1.5 * math.log(2)])

    def test_temperature_divides_the_logits(self) -> None:
        logits = torch.tensor([[[0.0, 2.0]]])
        p = 1 / (1 + math.exp(-0.8))

        value = frame_entropy(logits, torch.tensor([[True]]), temperature=2.5)

        assert float(value) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))

    def test_no_frame_counts(self) -> None:
        assert frame_entropy(_logits(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [0.0]


def _matrix_confusion(logits: torch.Tensor, reweight: bool) -> torch.Tensor:
    """The loss of one utterance, (T, V), by its confusion matrix."""
    probs = logits.softmax(dim=1)
    weights = torch.ones(len(probs))
    if reweight:
        entropies = -(probs * probs.log()).sum(dim=1).detach()
        weights = 1 + torch.exp(-entropies)
        weights = len(probs) * weights / weights.sum()
    matrix = probs.T @ torch.diag(weights) @ probs
    matrix = matrix / matrix.sum(dim=1, keepdim=True)
    return (matrix.sum() - matrix.trace()) / logits.shape[1]


class TestClassConfusion:
    def test_hand_computed_values(self) -> None:
        sure = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
        halves = torch.zeros(1, 2, 2)
        mixed = torch.tensor([[[0.75, 0.25], [0.25, 0.75]]]).log()
        every = torch.ones(1, 2, dtype=torch.bool)

        # of "mixed", the confusion matrix is [[0.625, 0.375], [0.375, 0.625]]
        for logits, expected in ((sure, 0.0), (halves, 0.5), (mixed, 0.375)):
            assert float(class_confusion(logits, every)) == pytest.approx(expected)

    @pytest.mark.parametrize("reweight", [True, False])
    @pytest.mark.parametrize("temperature", [1.0, 2.5])
    def test_equals_the_confusion_matrix_in_value_and_gradient(self, reweight: bool, temperature: float) -> None:
        logits = _logits(1, 9, 6).requires_grad_()
        mask = torch.ones(1, 9, dtype=torch.bool)
        weights = confidence_weights(logits, mask, temperature).detach() if reweight else mask

        found = class_confusion(logits, weights, temperature)
        expected = _matrix_confusion(logits[0] / temperature, reweight)

        torch.testing.assert_close(found[0], expected)
        gradients = [torch.autograd.grad(value, logits)[0] for value in (found.sum(), expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)

    def test_masked_frames_are_as_if_they_were_not_there(self) -> None:
        logits = _logits(2, 7, 5)
        mask = torch.tensor([[True] * 7, [True, False, True, True, False, False, False]])
        logits[1, 4:] = float("nan")

        for reweight in (True, False):
            weights = confidence_weights(logits, mask) if reweight else mask
            found = class_confusion(logits, weights)
            expected = [_matrix_confusion(logits[0], reweight), _matrix_confusion(logits[1][mask[1]], reweight)]
            torch.testing.assert_close(found, torch.stack(expected))

    def test_a_class_that_never_had_a_chance_is_wholly_confused(self) -> None:
        logits = torch.tensor([[[0.0, -1e4, 0.0], [0.0, -1e4, 0.0]]])

        assert float(class_confusion(logits, torch.ones(1, 2))) == pytest.approx(1 - (0.5 + 0.5) / 3)

    def test_no_frame_counts(self) -> None:
        assert class_confusion(_logits(1, 3, 4), torch.zeros(1, 3)).tolist() == [1.0]

    def test_the_size_of_the_weights_cancels(self) -> None:
        logits, weights = _logits(1, 6, 4), torch.rand(1, 6) + 0.5

        torch.testing.assert_close(class_confusion(logits, 7 * weights), class_confusion(logits, weights))


class TestSuta:
    def test_is_the_weighted_sum_of_its_parts(self) -> None:
        logits, lengths = _logits(2, 8, 5), torch.tensor([8, 5])
        mask = non_blank_mask(logits, lengths, BLANK)

        plain = suta_losses(logits, mask, 2.5, 0.25, reweight=False)
        weighted = suta_losses(logits, mask)

        sharpness = frame_entropy(logits, mask, 2.5)
        torch.testing.assert_close(plain, 0.25 * sharpness + 0.75 * class_confusion(logits, mask, 2.5))
        weights = confidence_weights(logits, mask, 2.5)
        torch.testing.assert_close(weighted, 0.3 * sharpness + 0.7 * class_confusion(logits, weights, 2.5))
        assert not torch.allclose(plain, weighted)

    def test_examples_are_independent(self) -> None:
        logits, lengths = _logits(3, 8, 5), torch.tensor([8, 5, 7])
        mask = non_blank_mask(logits, lengths, BLANK)
        every = frame_mask(lengths, 8).float()

        together = suta_losses(logits, mask, weights=every)

        alone = [
            suta_losses(logits[row : row + 1, :n], mask[row : row + 1, :n], weights=every[row : row + 1, :n])
            for row, n in enumerate(lengths.tolist())
        ]
        torch.testing.assert_close(together, torch.cat(alone))

    def test_with_constant_weights_differences_are_the_gradient(self) -> None:
        logits, direction = _logits(1, 10, 6).double(), _logits(1, 10, 6, seed=1).double()
        mask = non_blank_mask(logits, torch.tensor([10]), BLANK)
        weights = confidence_weights(logits, torch.ones(1, 10, dtype=torch.bool), 2.5)
        leaf = logits.clone().requires_grad_()

        (gradient,) = torch.autograd.grad(suta_losses(leaf, mask, weights=weights).sum(), leaf)
        up, down = (suta_losses(logits + sign * 0.05 * direction, mask, weights=weights) for sign in (1, -1))

        assert float((up - down) / 0.1) == pytest.approx(float((gradient * direction).sum()), rel=1e-2)
