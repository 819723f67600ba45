"""The guard of supervised runs: rounds that raise the held-out loss are undone, and the run ends at its best state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from server.guards.best_state_guard import BestStateGuard, check_change, check_closing
from server.guards.closing import Candidate, Losses, to_average
from server.guards.guard import Contributions
from server.guards.logged_guard import check_state, negated
from server.guards.round_guard import OnStage, RoundGuard
from server.run.log import RoundReport
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, LatticeOverflow
from zo_common.ledger.record import Record
from zo_common.ledger.replay import apply_all
from zo_common.speech.evaluation import utterance_losses
from zo_common.speech.manifest import read_manifest
from zo_common.speech.recordings import Recordings, read_speech

NOISE = 2.0  # standard errors above which a rise is significant


def rise(found: Losses, best: Losses) -> tuple[float, float]:
    """Return the rise of the mean loss and its standard error.

    The comparison is paired: d_i = found_i − best_i, mean(d) and sd(d)/√N with N − 1 in the variance, so that
    differences in difficulty between utterances add no noise. For one utterance the error is infinite.
    """
    differences = found - best
    count = len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return float(np.mean(differences)), error


class HeldOutGuard(BestStateGuard[Losses], RoundGuard[Losses]):
    """Checks the loss of each of `guard-utterances` held-out utterances, in float32, as the evaluation computes it.

    1. A check is bad if the mean loss rose above that of the best good check by more than two standard errors of the
       paired difference, or if a loss is not finite. The rounds since the last check are then undone, and the learning
       rate is halved from there on.
    2. After `max-bad-rounds` bad checks in a row, or the last round, the run ends (`close`). Its final state is the
       last one, that of the best check or the average of the last third of the rounds, whichever has the lowest loss.

    Args:
        split: a split of the server's `data`.
        skip_bad: skip bad rows instead of raising DataError.

    Raises:
        DataError: the split cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        global_model: GlobalModel,
        split: str,
        on_stage: OnStage,
        *,
        skip_bad: bool,
    ) -> None:
        self._data = _sample(config, global_model, split, skip_bad)
        self._best_round = 0
        self._last: Losses | None = None  # of the weights after the last check's record
        super().__init__(config, global_model, f"loss of {len(self._data)} of {split}", on_stage)

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """As `Guard.review`."""
        contributions, message = super().review(server_round, contributions)
        if message:
            message += f", learning rates are multiplied by {self.step_factor:g} from here on"
        return contributions, message

    def _measure(self) -> Losses:
        """Return losses of the utterances, (N,). Raises ConfigError if the losses of the first check are not finite."""
        found = utterance_losses(self._global_model.speech, self._data)
        if self._best is None and not np.isfinite(found).all():
            bad = [e.where for e, loss in zip(self._data.examples, found, strict=True) if not np.isfinite(loss)]
            raise ConfigError(
                f"the guard's loss of {', '.join(bad[:3])} is not finite before the first round: mend the base model "
                "or take those recordings out of the split, or set guard-split='none'"
            )
        return found

    def _worse(self, found: Losses) -> str:
        assert self._best is not None
        if not np.isfinite(found).all():
            return "guard: the held-out loss is not finite"
        higher, error = rise(found, self._best)
        if higher <= max(0.0, NOISE * error):
            return ""
        best = f"{self._best.mean():.4f} after round {self._best_round}"
        return f"guard: the held-out loss is {found.mean():.4f} (best {best}), higher by {higher:.4f} ± {error:.4f}"

    def _change(self, found: Losses) -> tuple[float, float] | None:
        return None if self._last is None else rise(found, self._last)

    def _row_of(self, found: Losses, *, good: bool) -> dict[str, Any]:
        loss = float(found.mean())
        row: dict[str, Any] = {"loss": loss if math.isfinite(loss) else None}
        return row | {"losses": found.tolist()} if good else row

    def _read_row(self, row: dict[str, Any]) -> Losses | None:
        if "closing" in row:
            check_closing(row["closing"])
        check_change(row)
        if not isinstance(row["loss"], float | None):
            raise TypeError("the loss is no number")
        if not row["good"]:
            return None
        if not all(type(loss) is float and math.isfinite(loss) for loss in row["losses"]):
            raise ValueError("a loss is no finite number")
        if row["of"] == self._of and len(row["losses"]) != len(self._data):
            raise ValueError("losses of other utterances")
        return np.asarray(row["losses"], np.float64)

    def _remember_good(self, server_round: int, found: Losses) -> None:
        self._last = found
        if self._best is None or found.mean() <= self._best.mean():
            self._best, self._best_round = found, server_round

    def settle(self) -> RoundReport | None:
        """As `Guard.settle`: the end of the run."""
        return self.close() if self._last_round >= self.final_round else None

    def close(self) -> RoundReport | None:
        """Go from the last state to the best one; return the log line of the record that leads there, if one is needed.

        Like a check, the choice is in the log before it is in the ledger. A second call does nothing.
        """
        if self._closed:
            return None
        found = self._candidates()
        chosen = min(found, key=lambda candidate: candidate.loss)  # of equal ones the first: the last state
        if chosen.contributions:
            apply_all(self._global_model.state, [u for c in chosen.contributions for u in c.updates()])
        if chosen.name == "best":
            check_state(self._global_model.state.checksum(), self._state.ledger.ledger, self._best_round)
        number = self._last_round + bool(chosen.contributions)
        losses = {c.name: c.loss if math.isfinite(c.loss) else None for c in found}
        closing = self._ending(chosen.name, _why(found, chosen), losses, record=bool(chosen.contributions))
        self._note(number, chosen.losses, good=True, closing=closing)
        if not chosen.contributions:
            return None
        self._state.commit(number, chosen.contributions)
        return self._report(number, chosen.name)

    def _candidates(self) -> list[Candidate]:
        assert self._best is not None and self._last is not None
        unseen = self._applied_records(self._good_round)
        found = [Candidate("last", "the last state", (), self._measure() if unseen else self._last)]
        if since := self._applied_records(self._best_round):
            of = f"the state after round {self._best_round}, the best one evaluated"
            found.append(Candidate("best", of, negated(since), self._best))
        if average := self._average(self._averaged()):
            found.append(average)
        return found

    def _average(self, records: tuple[Record, ...]) -> Candidate | None:
        """Check the mean of the states after some records; None for fewer than two records."""
        contributions = to_average(records)
        updates = [u for c in contributions for u in c.updates()]
        if not updates:
            return None
        try:
            apply_all(self._global_model.state, updates)
        except LatticeOverflow:  # states at the edge of the lattice's range, plus rounding
            return None
        losses = self._measure()
        apply_all(self._global_model.state, updates, sign=-1)
        return Candidate("average", f"the average of the last {len(records)} rounds", contributions, losses)


def _sample(config: RunConfig, global_model: GlobalModel, split: str, skip_bad: bool) -> Recordings:
    """Read `guard-utterances` of a split, evenly spaced, since tables are often sorted by speaker."""
    manifest = read_manifest(config.data, split=split, text_column=config.text_column)
    rows, most = manifest.utterances, config.guard_utterances
    if most and len(rows) > most:
        rows = tuple(rows[index * len(rows) // most] for index in range(most))
    reader = global_model.speech.reader(**config.reading)
    return read_speech(replace(manifest, utterances=rows), reader, skip_bad=skip_bad)


def _why(found: list[Candidate], chosen: Candidate) -> str:
    others = ", ".join(f"{c.name} {c.loss:.4f}" for c in found if c is not chosen)
    return f"{chosen.of}: held-out loss {chosen.loss:.4f}" + (f" ({others})" if others else "")
