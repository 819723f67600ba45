"""Differentially private local training: Poisson samples, losses of single utterances, replies without other data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.config.run import RunConfig
from zo_common.errors import Refusal
from zo_common.estimator.step import LossFn
from zo_common.privacy.discrete_gaussian import poisson_subset
from zo_common.privacy.mechanism import Mechanism
from zo_common.wire.plan import Plan, Reply, Status

logger = logging.getLogger(__name__)
MOST_LOSS = 1e4
"""Losses are clipped here; one that is not finite counts as this: a step must not fail over one utterance."""


def check_demand(config: RunConfig, plan: Plan) -> None:
    """Refuse a plan that asks for less privacy than this device's settings.

    Raises:
        Refusal: another level, less noise, or noise that nobody here would add.
    """
    privacy = plan.privacy
    if privacy is not None and privacy.masked and not config.secure_aggregation:
        raise Refusal(
            "the plan asks for noise under a mask, and nothing is masked: its reply would be seen without noise; set "
            "secure-aggregation=true"
        )
    if config.privacy == "none":
        return
    asked = privacy.level if privacy else "none"
    if asked != config.privacy:
        raise Refusal(f"this device answers with privacy={config.privacy} only, the plan asks for {asked}")
    assert privacy is not None
    if (privacy.level == "example" or privacy.masked) and privacy.noise_multiplier < config.noise_multiplier:
        raise Refusal(
            f"this device answers with a noise-multiplier of {config.noise_multiplier:g} or more, "
            f"the plan asks for {privacy.noise_multiplier:g}"
        )
    if config.noise_by == "devices" and not privacy.noise_multiplier:
        raise Refusal(
            "this run's devices add the noise, the plan asks for none: ask for a share, or set noise-by=server"
        )


class SeparateLosses:
    """The losses of a sample's utterances, each computed alone, (B,) float64 on the CPU; B may be 0.

    In a common batch an utterance's loss depends on the longest one's window, and removing one would change the
    gradients of all others: then clipping each would not bound the effect of one. Nor would it if one utterance's
    failure ended a step.
    """

    def __init__(self, losses: list[LossFn]) -> None:
        self._losses = losses
        self._failed = False

    def __call__(self) -> torch.Tensor:
        values = [self._alone(loss).detach().cpu().double().reshape(1) for loss in self._losses]
        together = torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)
        return together.nan_to_num(MOST_LOSS, MOST_LOSS, -MOST_LOSS).clamp(-MOST_LOSS, MOST_LOSS)

    def _alone(self, loss: LossFn) -> torch.Tensor:
        try:
            return loss()
        except Exception:  # whatever it is: that a step failed over one utterance would be seen
            if not self._failed:
                logger.exception("the loss of an utterance cannot be computed: it counts as not finite")
            self._failed = True
            return torch.tensor(float("nan"))


@dataclass(frozen=True)
class PrivateSteps:
    """Local steps with the example-level guarantee, on a device with `size` utterances."""

    mechanism: Mechanism
    batch_size: int
    size: int

    @property
    def expected(self) -> int:
        """Expected number of utterances in a sample: `batch_size`, or all if there are fewer."""
        return min(self.batch_size, self.size)

    def loss(self, batch: Callable[[list[int]], Any], loss_fn: Callable[[Any], LossFn]) -> LossFn:
        """Return the losses of a fresh Poisson sample: every utterance is in it with probability expected / size.

        Args:
            batch: makes a batch of utterances.
            loss_fn: makes its loss.
        """
        chosen = poisson_subset(self.size, self.expected, self.size)

        def loss_of(index: int) -> LossFn:
            made = cache(lambda: loss_fn(batch([index])))  # at the first call: making it may fail, too

            def loss() -> torch.Tensor:
                return made()()

            return loss

        return SeparateLosses([loss_of(index) for index in chosen])

    def release(self, per_example: NDArray[np.float64]) -> NDArray[np.float32]:
        """As `Mechanism.release_step`."""
        return self.mechanism.release_step(per_example, self.expected)

    def noise(self, steps: int, queries: int) -> NDArray[np.float32]:
        """Return what steps of empty samples release, (steps, queries)."""
        return np.stack([self.release(np.zeros((queries, 0))) for _ in range(steps)])


def private_steps(plan: Plan, size: int) -> PrivateSteps | None:
    """Return the private steps of a plan for a device with `size` utterances; None for ordinary ones.

    Raises:
        Refusal: the device has fewer utterances than the accountant takes it to have.
    """
    if plan.privacy is None:
        return None
    if size < plan.privacy.num_examples:
        raise Refusal(
            f"this device has {size} utterances, the privacy accountant counts on {plan.privacy.num_examples}: each "
            "would be drawn more often than is accounted for; let the device introduce itself again"
        )
    return PrivateSteps(plan.privacy, plan.batch_size, size) if plan.privacy.level == "example" else None


def seen_reply(plan: Plan, reply: Reply, size: int) -> Reply:
    """Return the part of a reply that may leave the device: no loss and no message about the recordings.

    For the device level the scalars are clipped and noised here. A training that failed is answered with noise alone:
    the failure and its cause would reveal something about the recordings.
    """
    if plan.privacy is None:
        return reply
    reply = replace(reply, curvature=None)  # it carries no noise
    if not reply.checksum or reply.status in (Status.BEHIND, Status.CHECKSUM):
        return replace(reply, loss=0.0)
    failed, shape = reply.status is not Status.OK, (plan.local_steps, plan.estimator.num_queries)
    if steps := private_steps(plan, size):
        grads = steps.noise(*shape) if failed else reply.projected_grads
    else:
        grads = plan.privacy.release_reply(np.zeros(shape, np.float32) if failed else reply.projected_grads)
    return replace(
        reply,
        status=Status.OK,
        have_round=plan.server_round - 1,
        num_examples=size,
        loss=0.0,
        projected_grads=grads,
        message="",
    )
