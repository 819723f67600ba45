"""Settings of a loss: those of a run with the choices for a model, the same on devices and on the server."""

from __future__ import annotations

from dataclasses import dataclass, field

from zo_common.config.run import RunConfig
from zo_common.models.ctc.loss import SutaSettings
from zo_common.models.loss_check import FIRST_EPSILON, LossChoice

UNCHECKED_TAIL = 64


@dataclass(frozen=True)
class LossSettings:
    """The settings of a loss; each kind of model reads its own.

    Attributes:
        tail_tokens: tokens that represent the silent rest of Whisper's window; 0 cuts it off, None keeps all of it.
        language: of hypotheses.
        min_confidence: minimum confidence of a hypothesis to train on.
        suta: weights of "suta" and "entropy" of CTC models; the latter has no class confusion.
    """

    objective: str = "supervised"
    tail_tokens: int | None = UNCHECKED_TAIL
    language: str = "en"
    min_confidence: float = 0.0
    suta: SutaSettings = field(default_factory=SutaSettings)

    @classmethod
    def of(cls, config: RunConfig, tail_tokens: int | None) -> LossSettings:
        """Return the settings of a run, with a chosen tail."""
        suta = SutaSettings(config.temperature, config.entropy_weight)
        return cls(config.objective, tail_tokens, config.language, config.min_confidence, suta)


def unchecked(config: RunConfig) -> LossChoice:
    """Return a run's settings without a check; "auto" becomes a default that fits most models, in float32.

    For runs with `loss-check=false`, and under privacy: a choice that depends on single recordings would release
    information on them without noise.
    """
    return LossChoice(
        UNCHECKED_TAIL if isinstance(config.tail_tokens, str) else config.tail_tokens,
        "float32" if config.precision == "auto" else config.precision,
        FIRST_EPSILON if isinstance(config.epsilon, str) else config.epsilon,
        frozen="float32" if config.frozen_precision == "auto" else config.frozen_precision,
    )
