"""A guard of supervised runs with held-out speech on devices: rounds that raise the devices' loss are undone.

Devices can only be at states of the ledger. So a round is recorded before it is checked, and undone by a further record
with its contributions negated. The average of the last rounds is tried in the same way. These records have round
numbers but do not count as rounds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.guards.best_state_guard import BestStateGuard, check_change, check_closing
from server.guards.closing import applied_records, to_average
from server.guards.device_losses import LEAST_DEVICES, DeviceLosses, compare
from server.guards.guard import Contributions
from server.guards.logged_guard import check_state, negated
from server.run.log import RoundReport
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.errors import LatticeOverflow
from zo_common.ledger.record import Record
from zo_common.ledger.replay import apply_all

logger = logging.getLogger(__name__)
Ask = Callable[[], DeviceLosses]


@dataclass(frozen=True)
class CheckedLosses:
    """A check: the devices' losses, and a mean loss that can be compared between checks.

    Attributes:
        level: the first check's weighted mean loss plus the rises since, each from the best check to the next, over the
            devices that answered both.
    """

    losses: DeviceLosses
    level: float


class DeviceGuard(BestStateGuard[CheckedLosses]):
    """Asks devices for their held-out loss at the states after every `guard-every`-th round and the last.

    1. A check is bad if most devices' loss is not finite. It is also bad if the loss rose above that of the best good
       check by more than two standard errors, and rose for the median device too (`server.guards.device_losses`).
       A record then undoes the rounds since the last check, and the learning rate is halved from there on.
    2. A check counts only if at least half of the devices of the best check answer it.
    3. After `max-bad-rounds` bad checks in a row, or the last round, the run ends. Its final state is the last one,
       that of the best check, or the average of the last third of the rounds. The average is recorded, checked, and
       undone if it is no better.

    If fewer than two devices answer the first check, there is no guard.

    Args:
        global_model: the server's model, if it has one; used to verify the weights after an undo.
        ask: function that returns the devices' losses at the ledger's last state.
    """

    def __init__(self, config: RunConfig, global_model: GlobalModel | None, ask: Ask) -> None:
        most = f" of {config.guard_utterances} utterances" if config.guard_utterances else ""
        super().__init__(config, f"devices' loss{most} of {config.guard_split or 'held-out speech'}")
        self._global_model, self._ask_devices = global_model, ask
        self._off = False
        self._best_round = 0
        self._last: CheckedLosses | None = None  # of the weights after the last good check
        self._bytes = {"down": 0, "up": 0}

    @property
    def taken_back(self) -> list[tuple[int, int]]:
        """As `LoggedGuard.taken_back`: the record that undoes rounds follows the one that was checked."""
        bad = [row for row in self._rows if row.get("good") is False]
        return [(row["after"] + 1, row["server_round"] + 1) for row in bad]

    @property
    def closings(self) -> int:
        """As `Guard.closings`."""
        undone = sum(last <= self._last_round for _, last in self.taken_back)
        return super().closings + undone + len(self._trials)

    def settle(self) -> RoundReport | None:
        """As `Guard.settle`."""
        if self._pending:
            return self._take_back()
        if self._best is None and not self._first_check():
            return None
        if self._rows[-1].get("trial") and self._rows[-1]["server_round"] == self._last_round:
            return self._judge()
        if self._due:
            self._check_last()
        if self._pending:
            return self._take_back()
        return self._end() if self._last_round >= self.final_round and not self._closed else None

    def summary(self) -> dict[str, Any] | None:
        """As `Guard.summary`, with the payload of the checks since the server started."""
        found = super().summary()
        return None if self._off or found is None else found | {"look_bytes": self._bytes}

    @property
    def _records(self) -> tuple[Record, ...]:
        return self._state.ledger.ledger.records

    @property
    def _trials(self) -> list[int]:
        """Round numbers of the records that lead to an average."""
        return [row["server_round"] for row in self._rows if "trial" in row]

    @property
    def _pending(self) -> bool:
        """Whether the last state must be undone."""
        rows = self._rows
        return bool(rows) and rows[-1].get("good") is False and rows[-1]["server_round"] == self._last_round

    @property
    def _due(self) -> bool:
        last, every = self._last_round, self._config.guard_every
        moved = any(record.contributions for record in self._records[self._good_round :])
        if self._rows[-1]["server_round"] >= last or not moved:
            return False
        trained = last - self.closings
        ends = self._stopped or trained >= self._config.num_server_rounds
        # if no device could answer, the weights may be the cause
        return ends or not self._records[-1].contributions or trained % every == 0

    def _ask(self) -> DeviceLosses:
        found = self._ask_devices()
        self._bytes["down"] += found.down
        self._bytes["up"] += found.up
        return found

    def _first_check(self) -> bool:
        """Check the present weights, which count as good; return whether enough devices answered."""
        if self._off:
            return False
        found, last = self._ask(), self._last_round
        count = len(found.sums)
        self._off = count < LEAST_DEVICES
        if self._off:
            others = found.refusals or ("no other device was there to ask",)
            logger.warning(
                f"no guard: {count} device(s) answered with a held-out loss, expected {LEAST_DEVICES} ({others[0]}); "
                "give devices a split dev, or name theirs as guard-split"
            )
            return False
        if last:
            logger.info(f"guard: no checks of earlier rounds are known, round {last} counts as good")
        self._note(last, CheckedLosses(found, found.loss), good=True)
        utterances = sum(number for _, number in found.sums.values())
        message = f"guard: checks {utterances} held-out utterances of {count} devices"
        if self._config.eval_split and self._config.evaluate_on == "clients" and not self._config.guard_split:
            message += (
                f"; where that is eval-split {self._config.eval_split!r}, the reported split has chosen the rounds"
            )
        logger.info(message)
        return True

    def _check_last(self) -> None:
        """Check the last state, and record whether it is good."""
        assert self._best is not None
        found, last = self._ask(), self._last_round
        rise = compare(found, self._best.losses)
        if rise is None:
            self._missed(found)
            return
        seen = CheckedLosses(found, self._best.level + rise.mean)
        since = self._good_round
        self._note(last, seen, good=not rise.beyond_noise)
        if not rise.beyond_noise:
            return
        message = f"the held-out loss of {rise.broken} of {rise.devices} devices is not finite"
        if not rise.broke:
            best = f"{self._best.level:.4f} after round {self._best_round}"
            message = (
                f"the held-out loss of {rise.devices} devices is {seen.level:.4f} (best {best}), higher by "
                f"{rise.mean:.4f} ± {rise.error:.4f}"
            )
        logger.warning(
            f"round {last}: guard: {message}: rounds {since + 1} to {last} are undone by round {last + 1}, learning "
            f"rates are multiplied by {self.step_factor:g} from here on"
        )

    def _missed(self, found: DeviceLosses) -> None:
        assert self._best is not None
        last, count = self._last_round, len(self._best.losses.sums)
        counted = len((found.sums.keys() | found.broken) & self._best.losses.sums.keys())
        logger.warning(f"round {last}: guard: no check: {counted} of the {count} devices of the best check answered")
        self._rows.append({"server_round": last, "of": self._of, "missed": counted})
        self._write(last)

    def _take_back(self) -> RoundReport:
        after = self._rows[-1]["after"]
        return self._commit(negated(self._records[after:]), "good", back_to=after)

    def _commit(self, contributions: Contributions, closing: str, back_to: int | None = None) -> RoundReport:
        """Record contributions that lead to another state. Raises LatticeOverflow if the weights would overflow."""
        number = self._last_round + 1
        if self._global_model is not None:
            apply_all(self._global_model.state, [u for c in contributions for u in c.updates()])
            if back_to is not None:
                check_state(self._global_model.state.checksum(), self._state.ledger.ledger, back_to)
        self._state.commit(number, contributions)
        return self._report(number, closing)

    def _end(self) -> RoundReport | None:
        """Go to the average, which is checked next, or to the best known state if there is no average."""
        records = () if self._stopped else self._averaged()
        number, average = self._last_round + 1, to_average(records)
        if average:
            self._rows.append({"server_round": number, "of": self._of, "trial": len(records)})
            self._write(number)
            try:
                return self._commit(average, "average")
            except LatticeOverflow:  # states at the edge of the lattice's range, plus rounding
                self._rows.pop()
        return self._close((), {})

    def _judge(self) -> RoundReport | None:
        """Check the average, and keep it if it is better than the state that the run would end with."""
        count, (name, best) = self._rows[-1]["trial"], self._known_best()
        found = self._ask()
        rise = compare(found, best.losses)
        level = best.level + rise.mean if rise is not None else math.nan
        if rise is not None and rise.lower:
            why = f"the average of the last {count} rounds: held-out loss {level:.4f} ({name} {best.level:.4f})"
            closing = self._ending("average", why, {name: best.level, "average": level}, record=False)
            self._settle_on(self._last_round, CheckedLosses(found, level), closing)
            return None
        return self._close(negated(self._records[-1:]), {"average": level})

    def _close(self, back: Contributions, losses: dict[str, float]) -> RoundReport | None:
        """End with the last state or that of the best check; adds a record if one is needed.

        Args:
            back: contributions from the ledger's state to the last state.
            losses: losses of the other states that were checked.
        """
        name, best = self._known_best()
        after = self._best_round if name == "best" else self._good_round
        contributions = back + (negated(self._applied_records(after)) if name == "best" else ())
        known: dict[str, float | None] = {name: best.level}
        known |= {other: level if math.isfinite(level) else None for other, level in losses.items()}
        if name == "best" and self._last is not None and not self._applied_records(self._good_round):
            known["last"] = self._last.level
        others = ", ".join(f"{n} {level:.4f}" for n, level in known.items() if level is not None and n != name)
        of = f"the state after round {self._best_round}, the best one evaluated" if name == "best" else "the last state"
        why = f"{of}: held-out loss {best.level:.4f}" + (f" ({others})" if others else "")
        closing = self._ending(name, why, known, record=bool(contributions))
        self._settle_on(self._last_round + bool(contributions), best, closing)
        return self._commit(contributions, name, back_to=after) if contributions else None

    def _known_best(self) -> tuple[str, CheckedLosses]:
        """Return the last state, unless it was not checked or the best one's loss is lower, by mean and median."""
        assert self._best is not None
        if not self._applied_records(self._best_round):
            return "last", self._best
        if self._applied_records(self._good_round) or self._last is None:
            return "best", self._best
        rise = compare(self._last.losses, self._best.losses)
        return ("best", self._best) if rise is None or rise.higher else ("last", self._last)

    def _applied_records(self, after: int) -> tuple[Record, ...]:
        undone = [*self.taken_back, *((number, number) for number in self._trials)]
        return applied_records(self._records, undone, after)

    def _settle_on(self, server_round: int, found: CheckedLosses, closing: dict[str, Any]) -> None:
        self._note(server_round, found, good=True, closing=closing)
        self._best, self._best_round = found, server_round

    def _remember(self, server_round: int, good: CheckedLosses | None) -> None:
        super()._remember(server_round + (good is None), good)  # the next round's record leads back

    def _remember_good(self, server_round: int, found: CheckedLosses) -> None:
        self._last = found
        rise = None if self._best is None else compare(found.losses, self._best.losses)
        if self._best is None or (rise is not None and rise.mean <= 0 and rise.middle <= 0):
            self._best, self._best_round = found, server_round

    def _change(self, found: CheckedLosses) -> tuple[float, float] | None:
        compared = None if self._last is None else compare(found.losses, self._last.losses)
        return None if compared is None else (compared.mean, compared.error)

    def _row_of(self, found: CheckedLosses, *, good: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"loss": found.level if math.isfinite(found.level) else None}
        if not good:
            return row
        devices = {str(client): list(pair) for client, pair in sorted(found.losses.sums.items())}
        return row | {"devices": devices, "broken": sorted(found.losses.broken)}

    def _take_up_row(self, row: dict[str, Any]) -> None:
        if "good" in row:
            super()._take_up_row(row)
            if "closing" in row and row["of"] == self._of and self._last is not None:
                self._best, self._best_round = self._last, row["server_round"]
            return
        numbers = [row["server_round"], row["trial"] if "trial" in row else row["missed"]]
        if not (all(type(number) is int and number >= 0 for number in numbers) and isinstance(row["of"], str)):
            raise TypeError("a field is of another type")
        self._rows.append(row)

    def _read_row(self, row: dict[str, Any]) -> CheckedLosses | None:
        if "closing" in row:
            check_closing(row["closing"])
        check_change(row)
        if not row["good"]:
            if not (isinstance(row["loss"], float | None) and type(row["after"]) is int):
                raise TypeError("the loss is no number")
            return None
        sums = {int(client): (total, count) for client, (total, count) in row["devices"].items()}
        if not all(type(t) is float and math.isfinite(t) and type(n) is int and n > 0 for t, n in sums.values()):
            raise TypeError("a device's loss is no number of utterances")
        if not (sums and type(row["loss"]) is float and math.isfinite(row["loss"])):
            raise TypeError("the loss is no number")
        return CheckedLosses(DeviceLosses(sums, frozenset(int(client) for client in row["broken"])), row["loss"])
