"""Curvature of the loss along a step's directions, measured from the forward passes that the step makes anyway.

A pass gives log-probabilities at the labelled positions, not only their mean. Their differences along a direction,
D_j = J (z_j − z̄), give the generalised Gauss-Newton matrix of a cross-entropy, which for softmax outputs is the Fisher
matrix, between directions: ⟨D_i, D_j⟩ = Σ_pos w_pos Σ_v p_v (D_iv − D̄_i)(D_jv − D̄_j), with p the mean probabilities
(Schraudolph 2002; Martens, "New insights and perspectives on the natural gradient method", 2020). From them, and from
the projected gradients, follows the step that lowers a quadratic model most (`server.rounds.step_size`).
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import NonFiniteLoss

if TYPE_CHECKING:
    import torch

MOST_CLASSES = 128
MOST_PASSES = 64
MOST_VALUES = 1 << 22
"""Log-probabilities kept per step, 16 MiB: of more positions, an evenly spaced sample is kept."""
MOST_NOISE_SHARE = 0.95
"""Of means over devices and rounds: no smaller share of signal can be told from none."""
MOST_OF_ONE = 3.0
_CHUNK = 512
Floats = NDArray[np.float64]


class OutputTrace:
    """Log-probabilities at the labelled positions in each forward pass of a step, in the order of the passes.

    It keeps, in float32, the first `MOST_PASSES` passes, the `MOST_CLASSES` most likely classes of the first pass, and
    at most `MOST_VALUES` numbers in total: for q = 8 and 128 classes, 4096 positions.

    Args:
        passes: number of forward passes of the step.
    """

    def __init__(self, passes: int) -> None:
        self._expected = min(passes, MOST_PASSES)
        self._passes: list[NDArray[np.float32]] = []
        self._chosen: torch.Tensor | None = None
        self._classes: torch.Tensor | None = None
        self.rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self.weights: Floats = np.zeros(0)

    def record(self, logits: torch.Tensor, normaliser: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> None:
        """Store the outputs of one pass; positions, rows and weights are those of the first pass.

        Args:
            logits: (P, V) of the labelled positions.
            normaliser: (P,), log Σ_v exp(logits): log-probabilities are the difference.
            rows: int64 (P,): index of the utterance that a position belongs to.
            weights: (P,): weight of a position's loss in the mean loss of the batch.
        """
        if len(self._passes) == self._expected:
            return
        if not self._passes:
            self._choose(logits, rows, weights)
        if self._chosen is not None:
            logits, normaliser = logits[self._chosen], normaliser[self._chosen]
        if self._classes is not None:
            logits = logits.gather(1, self._classes)
        log_probs = logits.detach().float() - normaliser.detach().float()[:, None]
        self._passes.append(log_probs.cpu().numpy())

    def _choose(self, logits: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> None:
        positions, classes = logits.shape
        most = max(1, MOST_VALUES // (self._expected * min(classes, MOST_CLASSES)))
        if positions > most:
            import torch  # imported here: a process that only relays curvatures does not load torch

            self._chosen = torch.arange(most, device=logits.device) * positions // most
            logits, rows = logits[self._chosen], rows[self._chosen]
            weights = weights[self._chosen] * (positions / most)
        if classes > MOST_CLASSES:
            self._classes = logits.topk(MOST_CLASSES, dim=1).indices
        self.rows = rows.cpu().numpy()
        self.weights = weights.detach().cpu().double().numpy()

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """Log-probabilities of all stored passes, (passes, P, classes)."""
        return np.stack(self._passes)


@runtime_checkable
class TracedLoss(Protocol):
    """A loss that fills its trace, if one is set, at every call: `WhisperLoss`, `CTCLoss`."""

    trace: OutputTrace | None

    def __call__(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Curvature:
    """Curvature and noise from one step, which give the best step size; needs no further forward pass.

    Attributes:
        per_direction: t, mean of zᵀFz over the directions, an estimate of the trace of the Fisher matrix F.
        along_signal: gᵀFg of the gradient g without the noise of the batch's utterances; unbiased, may be negative.
        along_noise: the part that this noise adds: gᵀFg of the batch's own gradient is the sum of the two.
        noise: v, the part of the mean square of the projected gradients that is noise of the utterances (and, unless
            two-sided, of the loss being curved between w and w + εz).
    """

    per_direction: float
    along_signal: float
    along_noise: float
    noise: float

    def relative(self, square: float) -> RelativeCurvature | None:
        """Over the mean square of the projected gradients; None where nothing was measured, so that nothing follows."""
        if not (square > 0 and self.per_direction > 0):
            return None
        along = self.along_signal / square, self.along_noise / square
        share = min(MOST_OF_ONE, self.noise / square)
        return RelativeCurvature(self.per_direction, *along, share, square)


@dataclass(frozen=True)
class RelativeCurvature:
    """Curvature over m, the mean square of the projected gradients: independent of the gradient's size.

    Attributes:
        per_direction: t, as in `Curvature`, not over m.
        along_signal, along_noise: as in `Curvature`.
        noise_share: v / m, 0 … 3: of a few scalars it may be above 1, and the mean of many would be too small if each
            were held to that.
        square: m, by which numbers of several devices, or rounds, are weighted, so that they are quotients of means; 0
            where it is not known.
    """

    per_direction: float
    along_signal: float
    along_noise: float
    noise_share: float
    square: float = 1.0


def mean_curvature(steps: list[Curvature]) -> Curvature:
    """Return the mean of each number over steps, of which there is at least one."""
    return Curvature(*(math.fsum(column) / len(steps) for column in zip(*map(astuple, steps), strict=True)))


def fisher_gram(log_probs: NDArray[np.float32], weights: Floats, estimator: str, epsilon: float) -> Floats:
    """⟨D_i, D_j⟩ between the directions, float64 (q, q).

    Args:
        log_probs: (passes, P, classes) in the order in which a step of this estimator makes them.
        weights: (P,).
    """
    gram: Floats = np.zeros(())
    for start in range(0, max(1, log_probs.shape[1]), _CHUNK):
        part = log_probs[:, start : start + _CHUNK].astype(np.float64)
        probs = np.exp(part).mean(axis=0)
        along = _differences(part, estimator) / epsilon
        # whatever all classes of a position have in common, such as the classes left out, changes no probability
        along -= ((along * probs).sum(axis=2) / np.maximum(probs.sum(axis=1), 1e-300))[:, :, None]
        along *= np.sqrt(weights[start : start + _CHUNK, None] * probs)
        flat = along.reshape(len(along), -1)
        gram = gram + flat @ flat.T
    return gram


def _differences(values: Floats, estimator: str) -> Floats:
    """Of each direction: against the mean of all, the unperturbed pass, or half the other side's."""
    if estimator == "leave-one-out":
        return np.asarray(values - values.mean(axis=0))
    if estimator == "one-sided":
        return np.asarray(values[1:] - values[0])
    pairs = len(values) // 2 * 2
    return np.asarray((values[0:pairs:2] - values[1:pairs:2]) / 2)


def curvature_of(gram: Floats, per_example: Floats, estimator: str, epsilon: float) -> Curvature:
    """Estimate the curvature from a step's Gram matrix and projected gradients.

    Two-sided and one-sided: t = mean_j G_jj, and gᵀFg = (S − B) / (q (q − 1)) with S = |Σ_j g_j D_j|² = gᵀGg and
    B = Σ_j g_j² G_jj: the pairs i ≠ j alone, as E[g_i g_j zᵢᵀFzⱼ] = gᵀFg.

    Leave-one-out: all of a step's scalars and differences have the same mean taken off, so that the pairs i ≠ j are not
    independent, and their mean has the expectation q/(q − 1)³ · ((q² − 2q + 2) gᵀFg + |g|² t): for q = 4 the second
    term, t being much the larger, is most of it. With a_j = (L_j − L̄)/ε in place of g_j, Σ_j a_j D_j is J W g for a
    Wishart matrix W of q − 1 degrees of freedom, so that E[S] = (q − 1)(q·gᵀFg + |g|² t) and
    E[B] = (q − 1)²/q · (2 gᵀFg + |g|² t). Hence t = q/(q − 1) · mean_j G_jj, and
    gᵀFg = ((q − 1) S − q B) / ((q − 1)² (q − 2)) without bias. That is for normal directions; those of signs change it
    by Σ_i g_i² F_ii at most, which is little where the gradient is spread over many weights.

    Where there are too few directions to tell (two of leave-one-out, else one), gᵀFg is taken from all pairs, an upper
    bound in expectation, and steps are short. Both forms are quadratic in the scalars, so that the noise of utterances
    in them is the same form of the scalars' covariance over the batch. One utterance cannot tell: half counts as noise.

    Args:
        gram: (q', q') of the first q' ≤ q directions.
        per_example: (q, B), as `StepResult` has it.

    Raises:
        NonFiniteLoss: a number is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = _curvature_of(gram, per_example, estimator, epsilon)
    if not all(map(math.isfinite, astuple(found))):
        raise NonFiniteLoss("the curvature is not finite: raise epsilon")
    return found


def _curvature_of(gram: Floats, per_example: Floats, estimator: str, epsilon: float) -> Curvature:
    q, size = per_example.shape
    kept, square = len(gram), float(np.square(per_example.mean(axis=1)).mean())
    scalars, diagonal = per_example[:kept], gram.diagonal()
    noise = float(per_example.var(axis=1, ddof=1).mean()) / size if size > 1 else square / 2
    if estimator == "leave-one-out":
        scalars = (scalars - scalars.mean(axis=0)) * ((q - 1) / q)
        diagonal = diagonal * (kept / (kept - 1))
        # half of ε·zᵀFz is in every scalar: what differs between directions is no gradient
        noise += q / (q - 1) * (epsilon / 2) ** 2 * float(diagonal.var(ddof=1))
        form = ((kept - 1) * gram - kept * np.diag(gram.diagonal())) / ((kept - 1) ** 2 * max(1, kept - 2))
        few = kept < 3
    else:
        if estimator == "one-sided":
            noise += (epsilon / 2) ** 2 * float(np.square(diagonal).mean())
        form = (gram - np.diag(diagonal)) / (kept * max(1, kept - 1))
        few = kept < 2
    if few:
        form = gram / (kept * max(1, kept - 1))
    mean = scalars.mean(axis=1)
    along = float(mean @ form @ mean)
    spread = scalars - mean[:, None]
    along_noise = float(np.sum(form * (spread @ spread.T))) / ((size - 1) * size) if size > 1 else along / 2
    return Curvature(float(diagonal.mean()), along - along_noise, along_noise, noise)
