"""First order on the same devices and recordings: FedAvg with Adam on all weights, on adapters, on biases; and Adam."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.learning.crowd import Crowd
from benchmarks.learning.method import Cost, Settings
from zo_common.directions.seeds import client_seed
from zo_common.errors import ConfigError, NonFiniteLoss
from zo_common.lattice.trained import select
from zo_common.speech.speech_model import LossOf

LORA = "lora"
RANK = 8
# query and value projections, as LoRA's authors adapt (arXiv 2106.09685)
_LORA_MODULES = ["q_proj", "v_proj"]


class FirstOrder:
    """Adam by back-propagation. Several devices: FedAvg of what each one's own steps made, with a fresh optimiser.

    One device: plain Adam, whose optimiser lives as long as the run.

    Args:
        settings: `tensors` may be "lora". Of `extra`: `micro` utterances are run backwards at a time (0: the batch),
            `checkpointing` computes activations twice instead of keeping them.
    """

    def __init__(self, crowd: Crowd, settings: Settings) -> None:
        self.crowd, self.settings = crowd, settings
        if settings.tensors == LORA:
            self.weights = add_lora(crowd.model, settings.seed)
        else:
            self.weights = select(crowd.model, settings.tensors)
        self._losses: LossOf = crowd.losses(list(self.weights), settings.tail_tokens)
        for weight in self.weights.values():
            weight.requires_grad_(True)
        if settings.of("checkpointing", 0):
            recompute_layers(crowd.model)
        self._single = self._optimizer() if crowd.devices == 1 else None

    def _optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.weights.values(), lr=self.settings.learning_rate)

    def round(self, number: int) -> Cost:
        """As `Method.round`."""
        start = self._copy()
        total = sum(map(self.crowd.examples, range(self.crowd.devices)))
        mean, passes = [torch.zeros_like(w) for w in start], 0
        try:
            for device in range(self.crowd.devices):
                self._put(start)
                passes += self._local(device, client_seed(self.settings.seed, number, device))
                share = self.crowd.examples(device) / total
                for one, weight in zip(mean, self.weights.values(), strict=True):
                    one.add_(weight.detach(), alpha=share)
        except BaseException:
            self._put(start)
            raise
        self._put(mean)
        size = 0 if self._single else 4 * sum(w.numel() for w in start)
        return Cost(passes, passes, size, size)

    def _local(self, device: int, seed: int) -> int:
        """Make a device's steps; return the number of utterances."""
        optimizer, taken = self._single or self._optimizer(), 0
        for step in range(self.settings.local_steps):
            chosen = self.crowd.draw(device, seed, step, self.settings.batch_size)
            micro = int(self.settings.of("micro", 0)) or len(chosen)
            for start in range(0, len(chosen), micro):
                part = chosen[start : start + micro]
                loss = self._losses(self.crowd.batch(device, part))().sum() / len(chosen)
                if not bool(torch.isfinite(loss)):
                    raise NonFiniteLoss("the loss is not finite: lower the learning rate")
                torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            taken += len(chosen)
        return taken

    def _copy(self) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in self.weights.values()]

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self.weights.values(), values, strict=True):
            weight.copy_(value)

    def finish(self) -> None:
        """Merge the adapters into the weights."""
        if self.settings.tensors == LORA:
            merge_lora(self.crowd.model)
        self.crowd.model.requires_grad_(False)

    def state(self) -> dict[str, Any]:
        """As `Method.state`."""
        return {"weights": self._copy(), "adam": deepcopy(self._single.state_dict()) if self._single else None}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Method.restore`."""
        self._put(state["weights"])
        if self._single is not None:
            self._single.load_state_dict(state["adam"])


def add_lora(model: nn.Module, seed: int) -> dict[str, nn.Parameter]:
    """Put adapters of rank 8 in place; their parameters.

    Raises:
        ConfigError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("LoRA needs the package peft: pip install 'federated-zo-asr[learning]'") from None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=_LORA_MODULES), model)
    model.eval()
    return {name: p for name, p in sorted(model.named_parameters()) if ".lora_" in name}


def merge_lora(model: nn.Module) -> None:
    """Add the adapters' products to the weights beneath them."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()


def recompute_layers(model: Any) -> None:
    """Keep the layers' inputs alone; what is between is computed again on the way back."""
    for name, module in model.named_modules():
        if name.endswith(tuple(f".layers.{n}" for n in range(100))):
            module.forward = _recomputed(module.forward)


def _recomputed(forward: Any) -> Any:
    return lambda *inputs, **named: checkpoint(forward, *inputs, use_reentrant=False, **named)
