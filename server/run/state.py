"""The state of a run: ledger on disk, weights in memory, and their checksum. A round changes all three or none."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path

from server.messaging.catch_up import CatchUp
from server.messaging.validation import RoundInbox
from server.run.model import GlobalModel, View, check_same_base, open_header
from server.run.range_guard import first_out_of_range, largest, out_of_range
from server.run.settings import log_settings, refuse_fixed_changes
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, LatticeOverflow, LedgerError, TooFewReplies
from zo_common.ledger.file import LEDGER_NAME, LedgerFile, read_ledger_header
from zo_common.ledger.record import Contribution, Record
from zo_common.ledger.replay import apply_all, replay

logger = logging.getLogger(__name__)


def refuse_used_ledger(config: RunConfig) -> None:
    """Refuse to start a new run on the ledger of another, or to resume one with settings that must not change.

    Raises:
        ConfigError: names what to set instead.
        LedgerError: the ledger's header cannot be read.
    """
    path = Path(config.output) / LEDGER_NAME
    if not path.exists():
        return
    if not config.resume:
        raise ConfigError(f"{path} exists already: set resume=true to continue it, or another output")
    refuse_fixed_changes(read_ledger_header(path), config)


class RunState:
    """State of a new or resumed run; for a resumed run, all rounds of its ledger are replayed and checked.

    Attributes:
        global_model: the server's model; None for a server without one.
        checksum: checksum of the weights after the last round; 0 if the server cannot know it.

    Raises:
        ConfigError, LedgerError, WrongBaseModel: a ledger that cannot be continued with these settings.
    """

    def __init__(self, config: RunConfig, global_model: GlobalModel | None, reference: View) -> None:
        self.global_model = global_model
        self.resumed = False
        self._config = config
        self.ledger = self._open_ledger(Path(config.output) / LEDGER_NAME, reference)
        header, last_round = self.ledger.ledger.header, self.ledger.ledger.last_round
        log_settings(config, header, last_round, resumed=self.resumed)
        self.checksum = self._state_checksum()

    def _open_ledger(self, path: Path, reference: View) -> LedgerFile:
        header = open_header(self._config, reference)
        refuse_used_ledger(self._config)
        if not path.exists():
            if self._config.resume:
                logger.warning(f"there is no ledger at {path}: a new run starts")
            return LedgerFile.create(path, header)
        check_same_base(read_ledger_header(path), header)
        self.resumed = True
        with warnings.catch_warnings(record=True) as caught:  # a torn last line; a simulation hides warnings
            warnings.simplefilter("always")
            opened = LedgerFile.open(path)
        for warning in caught:
            logger.warning(f"warning: {warning.message}")
        if self.global_model is not None:
            replay(self.global_model.state, opened.ledger)
            self.global_model.recorded(opened.ledger.records)
        logger.info(f"resumed {path} after round {opened.ledger.last_round}")
        return opened

    def _state_checksum(self) -> int:
        if self.global_model is not None:
            return self.global_model.state.checksum()
        return 0 if self.ledger.ledger.records else self.ledger.ledger.header.base_checksum

    def catch_up(self) -> CatchUp:
        """Return the run's history for devices that are behind; one object for the whole run."""
        weights = sum(math.prod(t.shape) for t in self.ledger.ledger.header.tensors)
        make = self.global_model.snapshot if self.global_model is not None else None
        return CatchUp(self._config.message_bytes, weights, make)

    def aggregate_in_range(
        self, scalars: list[ClientScalars], rate: float, inbox: RoundInbox
    ) -> tuple[Contribution, ...]:
        """Aggregate and update the weights; clients whose scalars would overflow are refused and leave `scalars`."""
        config, header = self._config, self.ledger.ledger.header
        # noise in shares, or of a mean, is sufficient only from so many devices on
        shares = config.privacy == "device" and not config.secure_aggregation  # a secure cohort has one sum
        least = config.min_replies if shares else 1
        aggregator = config.aggregator
        scalars[:] = [aggregator.used_part(client) for client in scalars]
        while len(scalars) >= least:
            worst = None
            if not aggregator.bounds_size:
                worst = first_out_of_range(scalars, rate, config.weighting, header)
            if worst is None:
                try:
                    contributions = aggregator.aggregate(scalars, rate)
                    if aggregator.bounds_size and out_of_range(contributions, header):
                        raise LatticeOverflow("the round's update would leave the lattice")
                    if self.global_model is not None:
                        apply_all(self.global_model.state, [u for c in contributions for u in c.updates()])
                    return contributions
                except TooFewReplies as error:
                    inbox.refuse("too-few", str(error))
                    scalars.clear()
                    return ()
                except LatticeOverflow:
                    worst = largest(scalars)
            scalars.remove(worst)
            inbox.refuse("out-of-range", f"client {worst.client_id}'s scalars would leave the lattice")
        return ()

    def quanta(self) -> tuple[int, int]:
        """Return the quanta applied so far, and how many of them were zero."""
        return (
            (self.global_model.state.quanta, self.global_model.state.zero_quanta)
            if self.global_model is not None
            else (0, 0)
        )

    def zero_share(self, server_round: int, before: tuple[int, int]) -> float:
        """Return the share of this round's quanta that were zero; logs a warning above 1 %."""
        if self.global_model is None:
            return 0.0
        state = self.global_model.state
        moved = state.quanta - before[0]
        share = (state.zero_quanta - before[1]) / moved if moved else 0.0
        if share > 0.01:
            logger.warning(
                f"round {server_round}: {share:.1%} of the update's quanta are zero: raise the learning rate, "
                "ask fewer clients a round, or merge local steps"
            )
        return share

    def commit(self, server_round: int, contributions: tuple[Contribution, ...]) -> None:
        """Record the round and the checksum of its weights; if that fails, restore the weights."""
        before_commit, self.checksum = (
            self.checksum,
            self.global_model.state.checksum() if self.global_model is not None else 0,
        )
        record = Record(server_round, self.checksum, contributions)
        try:
            self.ledger.append(record)
        except LedgerError:
            if self.global_model is not None:  # a round that is not on disk did not happen
                apply_all(self.global_model.state, [u for c in contributions for u in c.updates()], sign=-1)
            self.checksum = before_commit
            raise
        if self.global_model is not None:
            self.global_model.recorded([record])
