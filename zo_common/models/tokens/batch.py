"""Inputs of an autoregressive model, with the label of each position."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zo_common.models.objectives import IGNORE


@dataclass(frozen=True)
class TokenBatch:
    """Inputs of a forward pass.

    Attributes:
        inputs: arguments of the model's `forward` by name: audio, masks and tokens, the first dimension being B.
        labels: int64 (B, L) in step with the logits: what each position must predict; −100 on prompt and padding.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor

    def to(self, device: torch.device) -> TokenBatch:
        """Return the same batch on a device."""
        return TokenBatch({name: value.to(device) for name, value in self.inputs.items()}, self.labels.to(device))


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Return rows of tokens, right-padded, int64 (B, longest)."""
    found = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64)
    for row, tokens in zip(found, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return found


def next_tokens(prompts: list[list[int]], texts: list[list[int]], end: int) -> torch.Tensor:
    """Return labels of prompts before texts: position i predicts token i + 1, if that is of the text or its end."""
    rows = [[*[IGNORE] * (len(p) - 1), *text, end] for p, text in zip(prompts, texts, strict=True)]
    return padded(rows, IGNORE)
