"""Demands of a device's owner on whatever a server asks, in training and in evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, Refusal
from zo_common.speech.splits import DEVELOPMENT
from zo_common.wire.plan import Plan

NODE_KEYS = ("least-privacy", "least-noise", "secure-only", "least-weights")
HELD_OUT = (*DEVELOPMENT, "test", "eval", "evaluation")
"""Names of splits that are not for training."""
_LEVELS = ("none", "example", "device")  # each protects what the one before does


@dataclass(frozen=True)
class Demands:
    """The owner's terms; the defaults demand nothing.

    Attributes:
        least_privacy: "example" answers plans with a guarantee alone, "device" those of the device level alone.
        least_noise: noise multiplier of such a plan, at least.
        secure_only: answer no plan whose scalars the server would see alone.
        least_weights: trained weights, at least: of few, a seed can be picked for its directions.

    Raises:
        ConfigError: a value out of range.
    """

    least_privacy: str = "none"
    least_noise: float = 0.0
    secure_only: bool = False
    least_weights: int = 0

    def __post_init__(self) -> None:
        if self.least_privacy not in _LEVELS:
            raise ConfigError(f"least-privacy is {self.least_privacy!r}, expected one of {', '.join(_LEVELS)}")
        if not (math.isfinite(self.least_noise) and self.least_noise >= 0) or self.least_weights < 0:
            raise ConfigError(
                f"least-noise is {self.least_noise} and least-weights {self.least_weights}, expected numbers from 0"
            )
        if self.least_noise and self.least_privacy == "none":
            raise ConfigError("least-noise is set without least-privacy: name the level, example or device")

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Demands:
        """Return the demands in a node config, or in a worker's options.

        Raises:
            ConfigError: a value that cannot be used, or a level whose noise may be as little as a plan likes.
        """
        try:
            found = cls(
                str(node.get("least-privacy", "none")),
                float(node.get("least-noise", 0.0)),
                bool(node.get("secure-only", False)),
                int(node.get("least-weights", 0)),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"one of {', '.join(NODE_KEYS)} in the node config is no such value ({error})") from None
        if found.least_privacy != "none" and not (found.least_noise or node.get("max-epsilon")):
            raise ConfigError(
                "least-privacy is set without least-noise and max-epsilon, so that a millionth of a plan's noise would "
                "do: set one of them, such as max-epsilon 8"
            )
        return found

    def check_plan(self, config: RunConfig, plan: Plan) -> None:
        """Refuse a plan whose answer would show more than the owner allows.

        Raises:
            Refusal: says which demand it does not meet.
        """
        asked = plan.privacy.level if plan.privacy else "none"
        if _LEVELS.index(asked) < _LEVELS.index(self.least_privacy):
            raise Refusal(f"this device answers with privacy={self.least_privacy} or more, the plan asks for {asked}")
        if plan.privacy and plan.privacy.noise_multiplier < self.least_noise:
            raise Refusal(
                f"this device answers with a noise-multiplier of {self.least_noise:g} or more, the plan asks for "
                f"{plan.privacy.noise_multiplier:g}"
            )
        if plan.privacy and self.least_privacy != "none" and not plan.privacy.noise_multiplier:
            raise Refusal(
                "this device adds its noise by itself, the plan leaves it to the server: set noise-by=devices"
            )
        if self.secure_only and not config.secure_aggregation:
            raise Refusal(
                "this device is set to secure-only and was asked to train in the clear: set secure-aggregation"
            )

    def check_weights(self, count: int) -> None:
        """Refuse to answer along directions of so few weights.

        Raises:
            Refusal: fewer than the owner's least.
        """
        if count < self.least_weights:
            raise Refusal(
                f"this device answers for {self.least_weights} trained weights or more, trained-tensors has {count}: "
                "train more of the model"
            )

    def check_counts(self, split: str) -> None:
        """Refuse an evaluation: its counts and its loss carry no noise and no mask.

        Args:
            split: of the recordings that it looks at.

        Raises:
            Refusal: the owner demands either, or demands anything and the recordings may be those of training.
        """
        if self.least_privacy != "none" or self.secure_only:
            raise Refusal(
                "this device's owner demands noise or a mask, an evaluation's counts have neither: set "
                "evaluate-on=server and guard-split=none"
            )
        if self != NO_DEMANDS and split not in HELD_OUT:
            raise Refusal(
                "this device was asked to evaluate recordings that are not named as held out: set eval-split to one of "
                f"{', '.join(HELD_OUT)}"
            )

    def check_calibration(self) -> None:
        """Refuse a calibration: it measures few weights at a time, and without noise.

        Raises:
            Refusal: the owner demands anything.
        """
        if self != NO_DEMANDS:
            raise Refusal("this device's owner sets terms, a calibration meets none of them: name the trained-tensors")


NO_DEMANDS = Demands()
