"""ZO-SGD as published, a plain implementation of the algorithm: the baseline for our step and replay.

MeZO (arXiv 2305.17333, algorithms 1 and 2) and ZO-ASR (arXiv 2512.01267): a direction is what the global generator
gives after `torch.manual_seed(seed)`, drawn anew at each use; w + εz, w − 2εz, w + εz; then one update for each query.
Published code assigns `w = w + …`, with temporaries of the tensor's size; `in_place=True` is the thriftier reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch


def perturb(weights: Iterable[torch.Tensor], seed: int, factor: float, in_place: bool = False) -> None:
    """w ← w + factor · z(seed), z normally distributed and drawn in the tensor's own type."""
    torch.manual_seed(seed)
    for weight in weights:
        z = torch.randn(weight.shape, device=weight.device, dtype=weight.dtype)
        if in_place:
            weight.data.add_(z, alpha=factor)
        else:
            weight.data = weight.data + factor * z


def projected_grad(
    weights: Sequence[torch.Tensor],
    loss_fn: Callable[[], torch.Tensor],
    seed: int,
    epsilon: float,
    in_place: bool = False,
) -> float:
    """Return (L(w + εz) − L(w − εz)) / 2ε, the loss being the mean over examples; weights come back only nearly."""
    perturb(weights, seed, epsilon, in_place)
    plus = _loss(loss_fn)
    perturb(weights, seed, -2 * epsilon, in_place)
    minus = _loss(loss_fn)
    perturb(weights, seed, epsilon, in_place)
    return (plus - minus) / (2 * epsilon)


def plain_step(
    weights: Sequence[torch.Tensor],
    loss_fn: Callable[[], torch.Tensor],
    seeds: Sequence[int],
    epsilon: float,
    learning_rate: float,
    in_place: bool = False,
) -> list[float]:
    """Make one step: measure along every direction, then w ← w − learning_rate · (1/q) · Σ_j g_j z_j by j.

    MeZO's algorithm 2 takes the mean over queries, as we do; ZO-ASR's code takes the sum.
    """
    grads = [projected_grad(weights, loss_fn, seed, epsilon, in_place) for seed in seeds]
    for seed, grad in zip(seeds, grads, strict=True):
        perturb(weights, seed, -learning_rate * grad / len(seeds), in_place)
    return grads


def _loss(loss_fn: Callable[[], torch.Tensor]) -> float:
    with torch.inference_mode():
        return float(loss_fn().mean())
