"""The round loop: plan → replies → aggregate → ledger (fsync) → weights. The ledger on disk is the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import MessageType
from flwr.serverapp import Grid

from server.devices.absences import Absences
from server.devices.base_models import mismatched_devices, reference_view
from server.devices.device_status import DRIFT, DeviceStatuses
from server.devices.enrolment import Enrolment
from server.devices.roster import Member, Roster
from server.devices.selection import Selection
from server.devices.suspicion import NOTHING_TO_COMPARE, Suspicions
from server.guards.choice import guard_for
from server.guards.device_losses import DeviceLosses
from server.guards.privacy_guard import privacy_guard, settle_noise
from server.messaging.exchange import LOOK, SYNC, Exchange, Late, first_plans
from server.messaging.validation import RoundInbox
from server.rounds.attempt import Attempt
from server.rounds.calibration import calibrate, known_tensors, message_entries
from server.rounds.events import Events
from server.rounds.inboxes import EvaluationInbox
from server.rounds.plans import plan_for
from server.rounds.private_step import step_size
from server.rounds.rebuild import rebuild
from server.rounds.secure_round import secure_aggregation
from server.rounds.sync_inbox import SyncInbox
from server.run.lock import RunLock
from server.run.log import RoundReport, RunLog
from server.run.model import GlobalModel
from server.run.state import RunState, refuse_used_ledger
from zo_common.config.run import RunConfig
from zo_common.errors import RunStopped, WrongBaseModel
from zo_common.lattice.trained import AUTO
from zo_common.ledger.file import LEDGER_NAME, LedgerFile
from zo_common.wire.plan import Plan

logger = logging.getLogger(__name__)
ModelOf = Callable[[RunConfig], GlobalModel]
__all__ = ["LEDGER_NAME", "Events", "Federation", "refuse_used_ledger"]
_MOST_WORDS = 2  # messages of devices, printed in one round
_ROUNDS_LATE = 8  # answers of older rounds are not counted


class Federation:
    """One run on a Flower Grid.

    1. Load the model (unless `server-model` is off) and wait for devices; each introduces itself.
    2. Open a new ledger or resume one: replay it, continue with the next round.
    3. Each round: register new devices, select, send plans, collect replies until the deadline, refuse invalid ones.
    4. Aggregate, apply, append to the ledger with fsync: a crash at any point loses only the current round.

    Args:
        model_of: returns the server's model for a run's settings; in one process, it may be shared with the devices.
        enrolment: what the operator knows of the devices; default: nothing, and they are other people's.

    Raises:
        OperatorError: before the first round; the message says what to correct.
        RunStopped: too many rounds in a row without enough valid replies.
    """

    def __init__(
        self,
        config: RunConfig,
        grid: Grid,
        events: Events | None = None,
        model_of: ModelOf = GlobalModel,
        enrolment: Enrolment | None = None,
    ) -> None:
        self.config, self._enrolment = config, enrolment
        self.grid = grid
        self._model_of = model_of
        self.events = events or Events()
        self._lock = RunLock(Path(config.output))  # taken first: a second server must not contact the devices
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        refuse_used_ledger(self.config)
        asked, config = self.config, known_tensors(self.config, Path(self.config.output) / LEDGER_NAME)
        global_model = self._model_of(config) if config.server_model else None
        self.roster = Roster(self.grid, config, self._enrolment)
        self.roster.also = self._also = message_entries(asked, config)
        self.roster.start()
        if config.trained_tensors == AUTO:
            config = calibrate(config, self.grid, global_model, list(self.roster.members.values()))
            global_model = self._model_of(config) if config.server_model else None
            self.roster.also = self._also = message_entries(asked, config)
            self.roster.start()  # devices introduce themselves again, with the chosen tensors
        self._reference = reference_view(global_model, self.roster.members.values())
        self._leave_out_mismatched(list(self.roster.members.values()), 0)
        self.events.on_model(global_model)
        config = settle_noise(config, list(self.roster.members.values()), Path(config.output) / LEDGER_NAME)
        self.config = config
        self.guard = guard_for(config, global_model, self.events.on_stage, self.losses_on_clients)
        self.step_size = step_size(config, global_model, self.guard.progress)
        self.state = RunState(config, global_model, self._reference)
        self.step_size.take_up(self.ledger.ledger)
        self.privacy = privacy_guard(config, self.ledger, self.resumed)
        self.log = RunLog(Path(config.output), resume_after=self.ledger.ledger.last_round)
        self.log.add_introduction(asdict(self.roster.introductions), resumed=self.resumed)
        self._secure = secure_aggregation(config, self.grid, self.ledger.ledger.header)
        self.statuses, self._absences = DeviceStatuses(), Absences()
        if self.resumed:
            self.statuses.load(Path(config.output), self.ledger.ledger.last_round)
        self._selection = Selection(config, self.roster, self.statuses)
        self.suspicions = Suspicions.of(config, self.statuses)
        if config.aggregation != "mean" and config.directions != "shared":
            logger.warning(NOTHING_TO_COMPARE)
        self._catch_up = self.state.catch_up()
        self._late = Late()
        self._bad_rounds = 0

    @property
    def global_model(self) -> GlobalModel | None:
        """The server's model."""
        return self.state.global_model

    @property
    def members(self) -> dict[int, Member]:
        """The devices by node id."""
        return self.roster.members

    @property
    def ledger(self) -> LedgerFile:
        """The run's ledger on disk."""
        return self.state.ledger

    @property
    def last_round(self) -> int:
        """The ledger's last round."""
        return self.state.ledger.ledger.last_round

    @property
    def checksum(self) -> int:
        """The checksum of the weights after the last round."""
        return self.state.checksum

    @property
    def resumed(self) -> bool:
        """Whether this run continues an existing ledger."""
        return self.state.resumed

    def _leave_out_mismatched(self, members: list[Member], server_round: int) -> None:
        """Leave out devices with another base model.

        Raises:
            WrongBaseModel: before the first round, if fewer than `min-clients` devices are left.
        """
        found = mismatched_devices(self._reference, members)
        for node, message in found.items():
            self.roster.leave_out(node, message, server_round)
        if not server_round and len(self.roster.members) < self.config.min_clients:
            raise WrongBaseModel("\n  ".join(["too few devices are left to begin:", *found.values()]))

    def run(self) -> None:
        """Run all remaining rounds."""
        try:
            self._run()
        finally:
            self.close()

    def close(self) -> None:
        """Release the run's directory for another server."""
        self._lock.release()

    def _run(self) -> None:
        self.guard.begin(self.state)
        self._settle()  # a crash may have come before this step
        self.events.on_evaluate(self.last_round, self)
        try:
            while self.last_round < self.guard.final_round:
                self._next_round()
        except RunStopped:
            self.guard.stop()
            self._settle()
            if self.config.evaluate_on == "server":
                self.events.on_evaluate(self.last_round, self)
            raise
        if self.config.final_sync:
            self._tell_all()

    def _next_round(self) -> None:
        server_round = self.last_round + 1
        report = self.run_round(server_round)
        self._write_down(server_round, partial(self.log.append, report))
        if self._settle():
            self._bad_rounds = -1  # as if the guard refused the round itself
        report.scalars = {**self.step_size.scalars(server_round), **self.guard.scalars(server_round)}
        if self._due(server_round):
            report.evaluation = self.events.on_evaluate(self.last_round, self)
        self.events.on_round(report)
        self._stop_if_stuck(report)
        self.guard.stop_if_stuck()

    def _settle(self) -> bool:
        """Let the guard add records of its own; return whether they undid rounds."""
        done = []
        while (report := self.guard.settle()) is not None:
            self._write_down(report.server_round, partial(self.log.append, report))
            done.append(report.closing)
        return "good" in done

    def _tell_all(self) -> None:
        """Bring every online device to the state after the last round."""
        last = self.ledger.ledger.last_round
        self.roster.refresh(last)
        here = [m for m in self.members.values() if m.node_id in self.roster.online]
        plans = {m.node_id: self._plan(last + 1, m, 0.0) for m in here if not self.statuses.of(m.client_id).excluded}
        inbox = SyncInbox(plans)
        self._catch_up.begin_round(self.ledger.ledger.records)
        exchange = Exchange(self.grid, self.config.round_timeout, self._catch_up, SYNC, self._late, also=self._also)
        exchange.run(plans, inbox, first_plans(plans))
        for detail in inbox.details:
            logger.warning(f"after round {last}: {detail}")
        for client in inbox.reached:
            self.statuses.of(client).have_round = last
        self._write_down(last, lambda: self.statuses.save(Path(self.config.output), last))
        logger.info(f"{len(inbox.reached)} of {len(plans)} devices hold the state after round {last}")

    def _write_down(self, server_round: int, write: Callable[[], None]) -> None:
        """Write files for people to read: the round is in the ledger already, so an error is only a warning."""
        try:
            write()
        except OSError as error:
            logger.warning(f"round {server_round}: {error.filename or 'its line'} is not written: {error.strerror}")

    def _stop_if_stuck(self, report: RoundReport) -> None:
        self._bad_rounds = 0 if report.answered else self._bad_rounds + 1
        if self._bad_rounds >= self.config.max_bad_rounds:
            reasons = ", ".join(f"{count} {reason}" for reason, count in report.refused.items()) or "none was asked"
            raise RunStopped(
                f"{self._bad_rounds} rounds in a row had fewer than {self.config.min_replies} valid replies "
                f"(last: {reasons}): the run stops; mend the devices and resume it"
            )

    def _due(self, server_round: int) -> bool:
        every = self.config.evaluate_every
        return self.last_round >= self.guard.final_round or bool(every and server_round % every == 0)

    def evaluate_on_clients(self, server_round: int) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Return a summary of the devices' own held-out speech after `server_round`, and each one's counts."""
        found = self._ask_held_out(server_round, MessageType.EVALUATE, self.members)
        summary = found.logged_summary(server_round, self.config.language)
        return None if summary is None else (summary, found.counts(self.config.language))

    def losses_on_clients(self) -> DeviceLosses:
        """Return losses of the online devices' held-out speech, at the ledger's last state."""
        self.roster.refresh_online()
        return self._ask_held_out(self.last_round, LOOK, self.roster.online).losses()

    def _ask_held_out(self, server_round: int, kind: str, nodes: Container[int]) -> EvaluationInbox:
        here = [m for n, m in self.members.items() if n in nodes and not self.statuses.of(m.client_id).excluded]
        asked = self._absences.willing(here)
        plans = {m.node_id: self._plan(server_round + 1, m, 0.0) for m in asked}
        self._catch_up.begin_round(self.ledger.ledger.records)
        exchange = Exchange(self.grid, self.config.round_timeout, self._catch_up, kind, self._late, also=self._also)
        inbox = EvaluationInbox(plans, exchange.traffic.down, exchange.traffic.up)
        exchange.run(plans, inbox, first_plans(plans))
        self._absences.note(asked, inbox.absent)
        return inbox

    def run_round(self, server_round: int) -> RoundReport:
        """Run one round from plan to ledger; with fewer than `min-replies` valid replies it is recorded as empty."""
        start = time.monotonic()
        self._late.forget_before(server_round - _ROUNDS_LATE)
        self._selection.wait(server_round)
        self._leave_out_mismatched(self.roster.refresh(server_round), server_round)
        chosen = self._selection.choose(server_round, self.privacy.able if self.privacy else None)
        found, able = self._ask(server_round, chosen), self.privacy.able if self.privacy else None
        while others := found.members_again(server_round, chosen, self.config.min_replies, able):
            logger.warning(f"round {server_round}: {len(others)} devices are asked again, along other directions")
            found = self._ask(server_round, others).after(found)
        inbox, exchange = found.inbox, found.exchange
        drifted = self._record_outcomes(server_round, found)
        report = self._close_round(server_round, inbox)
        report.answered = found.summed if self._secure and report.answered else report.answered
        plans = {n: replace(self._plan(server_round + 1, self.members[n], 0.0), records=()) for n in drifted}
        rebuild(self.grid, self.config.round_timeout, self.statuses, plans, self._also)
        self._write_down(server_round, lambda: self.statuses.save(Path(self.config.output), server_round))
        report.asked = len(found.plans)
        report.down, report.up = exchange.traffic.down, exchange.traffic.up
        report.seconds = time.monotonic() - start
        return report

    def _ask(self, server_round: int, chosen: list[Member]) -> Attempt:
        """Ask devices to train, once their charges are on disk; with secure sums, open the sum."""
        attempt = self._secure.attempts.begin(server_round) if self._secure else 0
        if self.privacy is not None:
            self.privacy.charge(server_round, chosen)
        votes = self.config.aggregation == "sign-vote"
        factor, trained = self.guard.step_factor, server_round - self.guard.closings
        own, curved = self.step_size.planned(trained) * factor, self.config.measures_curvature
        plans = {m.node_id: replace(self._plan(server_round, m, own, attempt), curvature=curved) for m in chosen}
        secure = self._secure.begin(server_round, plans, self._shown()) if self._secure else None
        inbox = secure.inbox if secure else RoundInbox(plans, self.config.max_scalar, votes=votes)
        asked = secure.plans if secure else plans
        self._catch_up.begin_round(self.ledger.ledger.records)
        attached = secure.attached if secure else None
        also, timeout = self._also, self.config.round_timeout
        exchange = Exchange(self.grid, timeout, self._catch_up, late=self._late, attached=attached, also=also)
        over = self.config.clients_per_round if self.config.over_selection else 0
        exchange.run(asked, inbox, first_plans(asked), enough=over)
        if self.global_model is None:
            inbox.agree_on_checksum()
        summed = secure.finish(exchange) if secure else 0
        return Attempt(
            plans, inbox, exchange, summed, secure.faulty if secure else {}, secure.others if secure else set()
        )

    def _close_round(self, server_round: int, inbox: RoundInbox) -> RoundReport:
        """Aggregate the valid replies, update the weights, append to the ledger."""
        if len(inbox.replies) < self.config.min_replies and inbox.replies:
            message = f"{len(inbox.replies)} valid replies, min-replies is {self.config.min_replies}"
            inbox.refuse("too-few", f"{message}: the round stays empty")
            inbox.replies.clear()
        for detail in inbox.details:
            logger.warning(f"round {server_round}: refused: {detail}")
        for message in inbox.words[:_MOST_WORDS]:
            logger.info(f"round {server_round}: {message}")
        if (more := len(inbox.words) - _MOST_WORDS) > 0:
            logger.info(f"round {server_round}: {more} more devices say something, see rounds.jsonl")
        # FedAvg's weights come from the introductions: a reply cannot claim more examples than its device showed
        shown = self._shown()
        scalars = [replace(s, num_examples=shown[s.client_id]) for s in inbox.scalars()]
        if self._secure is None:  # with secure aggregation only the sum is known
            records = self.ledger.ledger.records
            for message in self.suspicions.review(server_round, scalars, records[-1] if records else None):
                logger.warning(f"round {server_round}: {message}")
        if self.privacy is not None:
            scalars = self.privacy.noised(scalars)
        trained = server_round - self.guard.closings
        rate = self.step_size.used(server_round, inbox, trained) * self.guard.step_factor
        counted = len(inbox.details)
        before = self.state.quanta()
        contributions = self.state.aggregate_in_range(scalars, rate, inbox)
        for detail in inbox.details[counted:]:
            logger.warning(f"round {server_round}: refused: {detail}")
        share = self.state.zero_share(server_round, before)
        contributions, message = self.guard.review(server_round, contributions)
        if message:
            inbox.refused.update({self.guard.refusal: len(scalars)} if scalars else {})
            self._bad_rounds = -1  # the update that made devices fail is undone: start counting anew
            logger.warning(f"round {server_round}: {message}")
        self.state.commit(server_round, contributions)
        losses = [] if self.privacy or self._secure else [reply.loss for reply in inbox.replies.values()]
        return RoundReport(
            server_round=server_round,
            learning_rate=rate,
            asked=0,
            answered=len(scalars),
            loss=sum(losses) / len(losses) if losses else None,
            epsilon_spent=self.privacy.epsilon if self.privacy is not None else None,
            checksum=f"{self.checksum:016x}" if self.checksum else "",
            refused=inbox.refused,
            suspected=self.suspicions.reported,
            told=inbox.messages,
            zero_quanta_share=share,
            ledger_bytes=self.ledger.path.stat().st_size,
        )

    def _shown(self) -> dict[int, int]:
        return {m.client_id: m.num_examples for m in self.members.values()}

    def _record_outcomes(self, server_round: int, found: Attempt) -> list[int]:
        """Record the round in the devices' status; return the nodes whose weights differ from the server's."""
        drifted, inbox, exchange = [], found.inbox, found.exchange
        for client, reason in found.faulty.items():
            self.statuses.exclude(client, reason)
        for node, plan in found.plans.items():
            self._catch_up.begin_again(plan.client_id)
            status = self.statuses.of(plan.client_id)
            status.node_id, status.name = node, self.members[node].name
            down, up = exchange.traffic.by_node.get(node, [0, 0])
            status.payload_down += down
            status.payload_up += up
            if node in inbox.failed:  # also after its reply, in a secure sum's last steps
                reason, detail = inbox.failed[node]
                self.statuses.failed(plan.client_id, server_round, reason, detail)
                if reason in DRIFT and self.statuses.drifted(plan.client_id):
                    drifted.append(node)
            elif node in inbox.replies:
                self.statuses.answered(plan.client_id, server_round)
        return drifted

    def _plan(self, server_round: int, member: Member, learning_rate: float, attempt: int = 0) -> Plan:
        plan = plan_for(self.config, self.ledger.ledger, self.checksum, server_round, member, learning_rate, attempt)
        return plan if self.privacy is None else self.privacy.ask(plan, member)
