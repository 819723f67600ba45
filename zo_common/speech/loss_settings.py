"""Settings of a loss: those of a run with what is chosen for a model, the same on devices and on the server."""

from __future__ import annotations

from dataclasses import dataclass, field

from zo_common.config.run import RunConfig
from zo_common.models.ctc.loss import SutaSettings
from zo_common.models.loss_check import FIRST_EPSILON, LossChoice

UNCHECKED_TAIL = 64


@dataclass(frozen=True)
class LossSettings:
    """What a loss depends on besides its batch; a kind of model reads what it knows.

    Attributes:
        tail_tokens: tokens that stand for the silent rest of Whisper's window; 0 cuts it off, None takes all of it.
        language: of hypotheses.
        min_confidence: below which a hypothesis is not learned from.
        suta: of "suta" and "entropy" of CTC models; the latter has no class confusion.
    """

    objective: str = "supervised"
    tail_tokens: int | None = UNCHECKED_TAIL
    language: str = "en"
    min_confidence: float = 0.0
    suta: SutaSettings = field(default_factory=SutaSettings)

    @classmethod
    def of(cls, config: RunConfig, tail_tokens: int | None) -> LossSettings:
        """The settings of a run, with a tail that was chosen."""
        suta = SutaSettings(config.temperature, config.entropy_weight)
        return cls(config.objective, tail_tokens, config.language, config.min_confidence, suta)


def unchecked(config: RunConfig) -> LossChoice:
    """The settings as they are; for "auto" what is right for most models, in float32.

    For runs with `loss-check=false`, and under privacy: a choice made by looking at single recordings is a release of
    them that no noise covers.
    """
    return LossChoice(
        UNCHECKED_TAIL if isinstance(config.tail_tokens, str) else config.tail_tokens,
        "float32" if config.precision == "auto" else config.precision,
        FIRST_EPSILON if isinstance(config.epsilon, str) else config.epsilon,
    )
