"""What the packages compute piece by piece or in fused kernels, computed plainly and whole, to compare with."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from zo_common.estimator.local_steps import LocalResult
from zo_common.ledger.record import Contribution
from zo_common.ledger.snapshot import SnapshotPart, snapshot_part
from zo_common.models.objectives import IGNORE, entropy, masked_mean


def local_contribution(result: LocalResult, seed: int, client_id: int, learning_rate: float) -> Contribution:
    """The update a client's own steps made, as a contribution of weight one."""
    q = result.projected_grads.shape[1]
    coefficients = -learning_rate * result.projected_grads.astype(np.float64) / q
    return Contribution(seed, client_id, coefficients.astype(np.float32))


def split_snapshot(
    data: bytes, *, base_id: int, client_id: int, server_round: int, checksum: int, limit: int
) -> list[SnapshotPart]:
    """All parts of a snapshot, as a server sends them one by one."""
    of = {"base_id": base_id, "client_id": client_id, "server_round": server_round, "checksum": checksum}
    first = snapshot_part(data, 0, **of, limit=limit)
    return [first, *(snapshot_part(data, n, **of, limit=limit) for n in range(1, first.parts))]


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of each example's tokens, in nats.

    Args:
        logits: (B, L, vocabulary).
        labels: (B, L); positions holding −100 do not count.

    Returns:
        float32 (B,); an example without any label has loss 0.
    """
    losses = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=IGNORE, reduction="none")
    counts = (labels != IGNORE).sum(dim=1).clamp(min=1)
    return losses.sum(dim=1) / counts


def token_entropy(logits: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Mean entropy of each example's marked positions, in nats: logits (B, L, vocabulary), bool (B, L) → (B,)."""
    return masked_mean(entropy(logits, temperature), mask)
