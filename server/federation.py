"""The round loop: plan → replies → aggregate → ledger (fsync) → weights. The ledger on disk is the run."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from server.client_evaluation import EvaluationInbox
from server.exchange import Exchange
from server.global_model import GlobalModel, check_resumable, open_header
from server.range_guard import first_out_of_range, largest
from server.roster import Introductions, Member, introduce, wait_for_nodes
from server.run_lock import RunLock
from server.run_log import RoundReport, RunLog
from server.validation import RoundInbox
from zo_common.aggregate import ClientScalars, aggregate
from zo_common.config import RunConfig
from zo_common.contribution import Contribution, Record
from zo_common.errors import ConfigError, LatticeOverflow, LedgerError
from zo_common.ledger_file import LedgerFile
from zo_common.messages import Plan
from zo_common.replay import apply_all, replay
from zo_common.seeds import client_seed, fold_in, shared_seed

LEDGER_NAME = "ledger.zo"
MAX_BAD_ROUNDS = 3
_SAMPLING_STREAM = 1 << 42


@dataclass
class Events:
    """Hooks for progress: what happens while a run goes on."""

    on_round: Callable[[RoundReport], None] = lambda report: None
    on_evaluate: Callable[[int, Federation], dict[str, Any] | None] = lambda server_round, federation: None
    on_word: Callable[[str], None] = print
    on_model: Callable[[GlobalModel | None], None] = lambda held: None
    on_stage: Callable[[str, int, int], None] = lambda label, done, total: None


def refuse_used_ledger(config: RunConfig) -> None:
    """Refuse to start a new run on the ledger of another."""
    path = Path(config.output) / LEDGER_NAME
    if path.exists() and not config.resume:
        raise ConfigError(f"{path} exists already: set resume=true to go on with it, or another output")


class Federation:
    """One run on a Flower Grid.

    1. Load the model (unless `server-model` is off) and wait for devices; each introduces itself.
    2. Open a new ledger or resume one: replay it, go on with the next round.
    3. Each round: choose devices, send plans, collect replies until the deadline, refuse what is not valid.
    4. Aggregate, apply, append to the ledger with fsync: a crash at any instruction loses the round in flight only.

    Raises:
        ConfigError, LedgerError, ModelNotFound …: user errors, before the first round.
    """

    def __init__(self, config: RunConfig, grid: Grid, events: Events | None = None) -> None:
        self.config = config
        self.grid = grid
        self.events = events or Events()
        self.held = GlobalModel(config) if config.server_model else None
        nodes = wait_for_nodes(grid, config.min_clients, config.round_timeout)
        told = Introductions()
        self.members = introduce(grid, nodes, config.round_timeout, self.events.on_word, config.min_clients, told)
        for client, count in told.skipped.items():
            self.events.on_word(f"device {client} skipped {count} bad recordings")
        self.events.on_model(self.held)
        self.resumed = False
        self._lock = RunLock(Path(config.output))
        self.ledger = self._open_ledger(Path(config.output) / LEDGER_NAME)
        self.log = RunLog(Path(config.output), resume_after=self.ledger.ledger.last_round)
        self.log.add_introduction(asdict(told), resumed=self.resumed)
        self.checksum = self._state_checksum()
        self._bad_rounds = 0

    def _open_ledger(self, path: Path) -> LedgerFile:
        header = open_header(self.config, self.held, self.members.values())
        refuse_used_ledger(self.config)
        if not path.exists():
            if self.config.resume:
                self.events.on_word(f"there is no ledger at {path}: a new run starts")
            return LedgerFile.create(path, header)
        self.resumed = True
        with warnings.catch_warnings(record=True) as caught:  # a torn end; a simulation hides warnings
            warnings.simplefilter("always")
            opened = LedgerFile.open(path)
        for warning in caught:
            self.events.on_word(f"warning: {warning.message}")
        check_resumable(opened.ledger.header, self.config, header)
        if self.held is not None:
            replay(self.held.state, opened.ledger)
        self.events.on_word(f"resumed {path} after round {opened.ledger.last_round}")
        return opened

    def _state_checksum(self) -> int:
        if self.held is not None:
            return self.held.state.checksum()
        return 0 if self.ledger.ledger.records else self.ledger.ledger.header.base_checksum

    def run(self) -> None:
        """All rounds that are still to do."""
        try:
            self._run()
        finally:
            self.close()

    def close(self) -> None:
        """Let another server have the run's directory."""
        self._lock.release()

    def _run(self) -> None:
        first = self.ledger.ledger.last_round + 1
        self._evaluate(first - 1)
        for server_round in range(first, self.config.num_server_rounds + 1):
            report = self.run_round(server_round)
            self.log.append(report)
            if self._due(server_round):
                report.evaluation = self._evaluate(server_round)
            self.events.on_round(report)
            self._stop_if_stuck(report)

    def _stop_if_stuck(self, report: RoundReport) -> None:
        self._bad_rounds = 0 if report.answered else self._bad_rounds + 1
        if self._bad_rounds >= MAX_BAD_ROUNDS:
            reasons = ", ".join(f"{count} {reason}" for reason, count in report.refused.items()) or "nobody was asked"
            raise ConfigError(f"{self._bad_rounds} rounds in a row had no valid reply (last: {reasons}): the run stops")

    def _due(self, server_round: int) -> bool:
        every = self.config.evaluate_every
        return server_round == self.config.num_server_rounds or bool(every and server_round % every == 0)

    def _evaluate(self, server_round: int) -> dict[str, Any] | None:
        return self.events.on_evaluate(server_round, self)

    def evaluate_on_clients(self, server_round: int) -> dict[str, Any] | None:
        """Summed error counts of the devices' own held-out speech at the state after `server_round`."""
        plans = {m.node_id: self._plan(server_round + 1, m, 0.0) for m in self.members.values()}
        inbox = EvaluationInbox(plans)
        exchange = Exchange(self.grid, self.config.round_timeout, MessageType.EVALUATE)
        exchange.run(plans, inbox, self.ledger.ledger.records)
        for detail in inbox.details:
            self.events.on_word(f"evaluation after round {server_round}: refused: {detail}")
        if not inbox.replies:
            self.events.on_word(f"evaluation after round {server_round}: no device answered, nothing is recorded")
            return None
        return inbox.summary() | {"evaluation_bytes": {"down": exchange.down.payload, "up": exchange.up.payload}}

    def run_round(self, server_round: int) -> RoundReport:
        """One round from plan to ledger. A round in which nobody gave a valid answer is recorded as empty."""
        start = time.monotonic()
        rate = float(np.float32(self.config.learning_rate_at(server_round)))  # what a plan carries and devices use
        plans = {m.node_id: self._plan(server_round, m, rate) for m in self._choose(server_round)}
        inbox = RoundInbox(plans, self.config.max_scalar)
        exchange = Exchange(self.grid, self.config.round_timeout)
        exchange.run(plans, inbox, self.ledger.ledger.records)
        if self.held is None:
            inbox.agree_on_checksum()
        for detail in inbox.details:
            self.events.on_word(f"round {server_round}: refused: {detail}")
        for word in inbox.words:
            self.events.on_word(f"round {server_round}: {word}")
        # FedAvg's weights come from the introductions: a reply cannot claim more examples than its device showed
        shown = {m.client_id: m.num_examples for m in self.members.values()}
        scalars = [replace(s, num_examples=shown[s.client_id]) for s in inbox.scalars()]
        counted = len(inbox.details)
        before = (self.held.state.quanta, self.held.state.zero_quanta) if self.held is not None else (0, 0)
        contributions = self._aggregate_in_range(scalars, rate, inbox)
        for detail in inbox.details[counted:]:
            self.events.on_word(f"round {server_round}: refused: {detail}")
        share = self._zero_share(server_round, before)
        self._commit(server_round, contributions)
        losses = [reply.loss for reply in inbox.replies.values()]
        return RoundReport(
            server_round=server_round,
            learning_rate=rate,
            asked=len(plans),
            answered=len(scalars),
            loss=sum(losses) / len(losses) if losses else None,
            checksum=f"{self.checksum:016x}" if self.checksum else "",
            down=exchange.down,
            up=exchange.up,
            refused=inbox.refused,
            zero_quanta_share=share,
            ledger_bytes=self.ledger.path.stat().st_size,
            seconds=time.monotonic() - start,
        )

    def _aggregate_in_range(
        self, scalars: list[ClientScalars], rate: float, inbox: RoundInbox
    ) -> tuple[Contribution, ...]:
        """Aggregate and move the weights; whose scalars would leave the lattice is refused, and `scalars` shrinks."""
        config, header = self.config, self.ledger.ledger.header
        while scalars:
            worst = first_out_of_range(scalars, rate, config.weighting, header)
            if worst is None:
                contributions = aggregate(scalars, rate, config.weighting, config.directions == "shared")
                try:
                    if self.held is not None:
                        apply_all(self.held.state, [u for c in contributions for u in c.updates()])
                    return contributions
                except LatticeOverflow:
                    worst = largest(scalars)
            scalars.remove(worst)
            inbox.refuse("out-of-range", f"client {worst.client_id}'s scalars would leave the lattice")
        return ()

    def _zero_share(self, server_round: int, before: tuple[int, int]) -> float:
        """Share of this round's quanta that were zero; a word above 1 %."""
        if self.held is None:
            return 0.0
        state = self.held.state
        moved = state.quanta - before[0]
        share = (state.zero_quanta - before[1]) / moved if moved else 0.0
        if share > 0.01:
            self.events.on_word(
                f"round {server_round}: {share:.1%} of the update's quanta are zero: raise the learning rate, "
                "ask fewer clients a round, or merge local steps"
            )
        return share

    def _commit(self, server_round: int, contributions: tuple[Contribution, ...]) -> None:
        """Record the round and the checksum its weights have; if that fails, the weights go back."""
        before_commit, self.checksum = self.checksum, self.held.state.checksum() if self.held is not None else 0
        try:
            self.ledger.append(Record(server_round, self.checksum, contributions))
        except LedgerError:
            if self.held is not None:  # what is not on disk did not happen
                apply_all(self.held.state, [u for c in contributions for u in c.updates()], sign=-1)
            self.checksum = before_commit
            raise

    def _choose(self, server_round: int) -> list[Member]:
        """Who is asked this round: late joiners not before their round; a seeded sample if not all are wanted."""
        members = sorted(self.members.values(), key=lambda m: m.client_id)
        if server_round < self.config.late_round and self.config.late_joiners:
            members = members[: max(1, len(members) - self.config.late_joiners)]
        wanted = self.config.clients_per_round
        if wanted and wanted < len(members):
            draw = random.Random(fold_in(self.config.run_seed, _SAMPLING_STREAM, server_round))
            members = sorted(draw.sample(members, wanted), key=lambda m: m.client_id)
        return members

    def _plan(self, server_round: int, member: Member, learning_rate: float) -> Plan:
        config = self.config
        ledger = self.ledger.ledger
        if config.directions == "shared":
            seed = shared_seed(config.run_seed, server_round)
        else:
            seed = client_seed(config.run_seed, server_round, member.client_id)
        return Plan(
            server_round=server_round,
            seed=seed,
            client_id=member.client_id,
            base_id=ledger.header.base_id,
            checksum=self.checksum,
            local_steps=config.local_steps,
            batch_size=config.batch_size,
            learning_rate=learning_rate,
            estimator=config.estimator_config,
            records=ledger.records[-1:],
        )
