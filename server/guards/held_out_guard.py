"""The guard of supervised runs: what raises the loss of held-out speech is taken back, and the run ends at its best."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from client.evaluation import utterance_losses
from client.manifest import Manifest, read_manifest
from client.speech import Recordings, read_speech
from server.global_model import GlobalModel
from server.guards.closing import Candidate, Losses, averaged_rounds, kept_records, to_average
from server.guards.guard import Contributions
from server.guards.round_guard import OnStage, RoundGuard, negated
from server.run_log import RoundReport
from zo_common.config import RunConfig
from zo_common.contribution import Record
from zo_common.errors import ConfigError, LatticeOverflow
from zo_common.replay import apply_all

_NOISE = 2.0  # standard errors by which a rise is not taken for the choice of utterances
_SMALLER = 0.5  # by which the step is multiplied after a bad look


def rise(found: Losses, best: Losses) -> tuple[float, float]:
    """How much the mean loss rose, and the standard error of that.

    The two are paired: d_i = found_i − best_i, mean(d) and sd(d)/√N with N − 1 in the variance, so that some utterances
    being harder than others is no noise. Of one utterance the error is infinite.
    """
    differences = found - best
    count = len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return float(np.mean(differences)), error


class HeldOutGuard(RoundGuard[Losses]):
    """Looks at the loss of each of `guard-utterances` held-out utterances, in float32, as the evaluation counts it.

    1. A look is bad if the mean loss rose above that of the best good look by more than two standard errors of the
       paired difference, or a loss is not finite. The rounds since the last look are then undone, and the learning rate
       is halved from there on.
    2. After `max-bad-rounds` bad looks in a row, or the last round, the run ends (`close`): with the last state, or
       that of the best look or the average of the last third of the rounds if its mean loss is lower.

    Args:
        split: of the server's `data`.
        skip_bad: go on with the rest of it where rows are bad.

    Raises:
        DataError: the split cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        held: GlobalModel,
        split: str,
        on_word: Callable[[str], None],
        on_stage: OnStage,
        *,
        skip_bad: bool,
    ) -> None:
        self._data = _sample(config, held, split, skip_bad)
        self._best_round = 0
        self._last: Losses | None = None  # of the weights after the last look's record
        super().__init__(config, held, f"loss of {len(self._data)} of {split}", on_word, on_stage)

    @property
    def final_round(self) -> int:
        """As `Guard.final_round`: the last one there is, once the run has ended or must."""
        return self._last_round if self._closed or self._stuck else self._config.num_server_rounds + self.closings

    @property
    def step_factor(self) -> float:
        """As `Guard.step_factor`: a half for every bad look."""
        return _SMALLER ** len(self.taken_back)

    @property
    def closings(self) -> int:
        """As `Guard.closings`."""
        return sum(bool(row["closing"]["record"]) for row in self._closing_rows)

    @property
    def _closing_rows(self) -> list[dict[str, Any]]:
        return [row for row in self._rows if "closing" in row]

    @property
    def _last_round(self) -> int:
        return self._state.ledger.ledger.last_round

    @property
    def _stuck(self) -> bool:
        return self._refusals >= self._config.max_bad_rounds

    @property
    def _closed(self) -> bool:
        if not (rows := self._closing_rows):
            return False
        same: bool = rows[-1]["server_round"] == self._last_round
        return same and self._config.num_server_rounds <= int(rows[-1]["closing"]["rounds"])

    def review(self, server_round: int, contributions: Contributions) -> tuple[Contributions, str]:
        """As `Guard.review`."""
        contributions, word = super().review(server_round, contributions)
        if word:
            word += f", learning rates are multiplied by {self.step_factor:g} from here on"
        return contributions, word

    def _look(self) -> Losses:
        """Losses of the utterances, (N,). Raises ConfigError where the first one is of no use."""
        found = utterance_losses(self._held.model, self._data)
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
        if higher <= max(0.0, _NOISE * error):
            return ""
        best = f"{self._best.mean():.4f} after round {self._best_round}"
        return f"guard: the held-out loss is {found.mean():.4f} (best {best}), higher by {higher:.4f} ± {error:.4f}"

    def _row_of(self, found: Losses, *, good: bool) -> dict[str, Any]:
        loss = float(found.mean())
        row: dict[str, Any] = {"loss": loss if math.isfinite(loss) else None}
        return row | {"losses": found.tolist()} if good else row

    def _read_row(self, row: dict[str, Any]) -> Losses | None:
        if "closing" in row:
            _check_closing(row["closing"])
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

    def close(self) -> RoundReport | None:
        """As `Guard.close`. What was chosen is in the log before it is in the ledger, as looks are."""
        if self._closed:
            return None
        found = self._candidates()
        chosen = min(found, key=lambda candidate: candidate.loss)  # of equal ones the first, which is the last state
        if chosen.contributions:
            apply_all(self._held.state, [u for c in chosen.contributions for u in c.updates()])
        if chosen.name == "best":
            self._check_state(self._best_round, self._last_round + 1)
        stopped, number = self._stuck, self._last_round + bool(chosen.contributions)
        losses = {c.name: c.loss if math.isfinite(c.loss) else None for c in found}
        closing = {"chosen": chosen.name, "record": bool(chosen.contributions), "stopped": stopped}
        closing |= {"rounds": self._config.num_server_rounds, "why": _why(found, chosen), "candidates": losses}
        self._note(number, chosen.losses, good=True, closing=closing)
        if stopped:
            self._on_word(f"guard: {self._config.max_bad_rounds} looks in a row were bad, the run ends early")
        self._on_word(f"guard: the run ends with {closing['why']}")
        return self._commit(number, chosen) if chosen.contributions else None

    def _commit(self, number: int, chosen: Candidate) -> RoundReport:
        self._state.commit(number, chosen.contributions)
        size = self._state.ledger.path.stat().st_size
        checksum = f"{self._state.checksum:016x}"
        return RoundReport(number, 0.0, 0, 0, checksum=checksum, ledger_bytes=size, closing=chosen.name)

    def _candidates(self) -> list[Candidate]:
        assert self._best is not None and self._last is not None
        unseen = self._kept(self._good_round)
        found = [Candidate("last", "the last state", (), self._look() if unseen else self._last)]
        if since := self._kept(self._best_round):
            of = f"the state after round {self._best_round}, the best one looked at"
            found.append(Candidate("best", of, negated(since), self._best))
        # rounds before those that are known, or before an earlier end of the run, are no part of an average
        first = max([self._rows[0]["server_round"], *(row["server_round"] for row in self._closing_rows)])
        made = self._kept(first)
        if average := self._average(made[len(made) - averaged_rounds(len(made)) :]):
            found.append(average)
        return found

    def _kept(self, after: int) -> tuple[Record, ...]:
        return kept_records(self._state.ledger.ledger.records, self.taken_back, after)

    def _average(self, records: tuple[Record, ...]) -> Candidate | None:
        """The mean of the states after some records, looked at; None of fewer than two."""
        contributions = to_average(records)
        updates = [u for c in contributions for u in c.updates()]
        if not updates:
            return None
        try:
            apply_all(self._held.state, updates)
        except LatticeOverflow:  # states at the very edge of the lattice, and rounding
            return None
        losses = self._look()
        apply_all(self._held.state, updates, sign=-1)
        return Candidate("average", f"the average of the last {len(records)} rounds", contributions, losses)

    def summary(self) -> dict[str, Any]:
        """As `Guard.summary`: looks and what was taken back, and why the run ended with which state."""
        rows = [row for row in self._rows if row["of"] == self._of]
        looks = [{key: row[key] for key in ("server_round", "good", "loss")} for row in rows if "closing" not in row]
        ends = {"start": rows[0]["loss"], "end": rows[-1]["loss"]} if rows else {}
        closing = self._closing_rows[-1]["closing"] if self._closed else None
        return super().summary() | ends | {"looks": looks, "step_factor": self.step_factor, "closing": closing}


def _sample(config: RunConfig, held: GlobalModel, split: str, skip_bad: bool) -> Recordings:
    """`guard-utterances` of a split, at even distances: tables are often sorted by speaker."""
    manifest = read_manifest(config.data, split=split, text_column=config.text_column)
    rows, most = manifest.utterances, config.guard_utterances
    if most and len(rows) > most:
        rows = tuple(rows[index * len(rows) // most] for index in range(most))
    reader = held.family.reader(language=config.language)
    return read_speech(Manifest(rows, manifest.problems), reader, skip_bad=skip_bad)


def _why(found: list[Candidate], chosen: Candidate) -> str:
    others = ", ".join(f"{c.name} {c.loss:.4f}" for c in found if c is not chosen)
    return f"{chosen.of}: held-out loss {chosen.loss:.4f}" + (f" ({others})" if others else "")


def _check_closing(found: dict[str, Any]) -> None:
    """Raises KeyError, TypeError where it is not what `close` writes down."""
    if not (type(found["record"]) is type(found["stopped"]) is bool and type(found["rounds"]) is int):
        raise TypeError("a field of the run's end is of another type")
    if not (isinstance(found["chosen"], str) and isinstance(found["why"], str)):
        raise TypeError("a field of the run's end is no text")
