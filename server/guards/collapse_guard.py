"""A guard against collapse: rounds that make the model more confident but worse on labelled speech are undone exactly.

Objectives without transcripts have a trivial minimum: a model with a constant output. The server therefore evaluates
the model on a labelled split. A round that makes the result worse is refused before it is recorded (see `round_guard`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from server.guards.round_guard import OnStage, RoundGuard
from server.run.model import GlobalModel
from server.run.state import RunState
from zo_common.config.run import RunConfig
from zo_common.errors import RunStopped
from zo_common.speech.evaluation import Health, health
from zo_common.speech.recordings import read_speech, spread


class CollapseGuard(RoundGuard[Health]):
    """Decodes the split after every `guard-every`-th round and the last one.

    Each check is compared with the best good check so far. It is bad if the loss is higher by more than
    `guard-tolerance` (relative), or if the word error rate or the diversity of the transcripts is worse by more than
    that (absolute). Comparing with the best, not the last, detects many small losses of quality.

    Raises:
        DataError: the split cannot be read.
    """

    refusal = "collapse"

    def __init__(self, config: RunConfig, global_model: GlobalModel, on_stage: OnStage) -> None:
        data = read_speech(
            config.data,
            global_model.speech.reader(**config.reading),
            split=config.guard_split,
            text_column=config.text_column,
            skip_bad=config.skip_bad,
        )
        self._data = spread(data, config.guard_utterances) if config.guard_utterances else data
        self._uncertainty = 0.0  # at the last good check
        super().__init__(config, global_model, f"{len(self._data)} of {config.guard_split}", on_stage)

    def begin(self, state: RunState) -> None:
        """As `RoundGuard.begin`; refusals are counted from zero, since a resumed run has usually changed settings."""
        super().begin(state)
        self._refusals = 0

    def stop_if_stuck(self) -> None:
        """Raises RunStopped after `max-bad-rounds` refusals in a row."""
        if self._refusals >= self._config.max_bad_rounds:
            raise RunStopped(
                f"the guard refused {self._refusals} times in a row, the weights are those of its last good check: "
                "lower the learning rate, or raise guard-tolerance, and resume the run"
            )

    def _measure(self) -> Health:
        label = f"guard: decoding {self._config.guard_split}"
        return health(
            self._global_model.speech,
            self._data,
            language=self._config.language,
            on_progress=lambda done, total: self._on_stage(label, done, total),
        )

    def _worse(self, found: Health) -> str:
        """Return what is worse than at the best good check; empty if nothing is. NaN counts as worse."""
        assert self._best is not None
        best, most = self._best, self._config.guard_tolerance
        faults = []
        if not found.loss <= best.loss * (1 + most):
            faults.append(f"loss {found.loss:.3f} (best {best.loss:.3f})")
        if not found.wer <= best.wer + most:
            faults.append(f"WER {found.wer:.1%} (best {best.wer:.1%})")
        if not found.diversity >= best.diversity - most:
            faults.append(f"diversity {found.diversity:.2f} (best {best.diversity:.2f})")
        if not faults:
            return ""
        fell = found.uncertainty < self._uncertainty
        entropy = f"entropy {'fell' if fell else 'rose'} from {self._uncertainty:.3f} to {found.uncertainty:.3f}"
        return f"guard: {'collapse' if fell else 'worse'}, {', '.join(faults)}, {entropy}"

    def _row_of(self, found: Health, *, good: bool) -> dict[str, Any]:
        return {"health": asdict(found)}

    def _read_row(self, row: dict[str, Any]) -> Health:
        if not all(type(value) in (int, float) for value in row["health"].values()):
            raise TypeError("a measure is no number")
        return Health(**row["health"])

    def _remember_good(self, server_round: int, found: Health) -> None:
        self._uncertainty = found.uncertainty
        best = self._best or found
        self._best = Health(
            min(best.loss, found.loss),
            min(best.wer, found.wer),
            found.uncertainty,
            max(best.diversity, found.diversity),
        )
