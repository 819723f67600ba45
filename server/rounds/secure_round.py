"""Secure aggregation over Flower: the steps around a round's training, and an inbox for masked replies.

query.secure  invitation → keys         query.secure  survivors → consents
query.secure  key list → sealed shares  query.secure  boxes → shares of masks → the sum
train         plan, sharers → masked vectors
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.messaging.byte_counts import Traffic
from server.messaging.exchange import (
    CONTENT,
    SECONDS_LEFT,
    SECURE,
    Exchange,
    ask,
    device_error,
    payload_of,
    serialised_size,
)
from server.messaging.foreign_text import plain
from server.messaging.validation import Refused, RoundInbox, check_fields, check_reply
from server.rounds.attempts import Attempts
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.errors import CodecError, SecureAggregationError
from zo_common.estimator.curvature import RelativeCurvature
from zo_common.ledger.ledger import LedgerHeader
from zo_common.privacy.discrete_gaussian import discrete_gaussians
from zo_common.secure_sum.node_keys import PEERS_NAME, PeerKeys
from zo_common.secure_sum.server import SecureServer
from zo_common.secure_sum.terms import PLAN_BYTES, Terms
from zo_common.wire.masked_reply import decode_masked, grid_of, is_masked, mean_curvature_of, means_of, vector_length
from zo_common.wire.plan import Plan, Reply, Status
from zo_common.wire.plan_digest import plan_digest

logger = logging.getLogger(__name__)
_STEP_SECONDS = 120.0  # for a step without training; a slower device counts as dropped out
_TTL_SLACK = 900.0
_MOST_REPEATED = 2  # times a round is begun again over a sum that was made impossible; a crash needs some attempts, too
Take = Callable[[int, bytes], None]


def run_id_of(header: LedgerHeader) -> bytes:
    """Return 16 bytes that identify a run."""
    text = f"{header.fingerprint} {header.run_seed} {header.created}"
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"zo-asr/run/v1").digest()


class SecureInbox(RoundInbox):
    """Collects masked replies; once the sum is known, the cohort counts as one client with the mean."""

    def __init__(self, plans: dict[int, Plan], max_scalar: float, server: SecureServer) -> None:
        super().__init__(plans, max_scalar)
        self._server = server
        self.masked: dict[int, NDArray[np.uint64]] = {}
        self._mean: ClientScalars | None = None
        self._curvature: RelativeCurvature | None = None

    def check(self, node_id: int, data: bytes, plan: Plan) -> Reply:
        """Return the reply's header; raises Refused as for plain replies, and with the reason "unmasked"."""
        if not is_masked(data):
            reply = check_reply(data, plan, self._max_scalar)
            if reply.status is Status.OK:
                raise Refused("unmasked", "reply shows its scalars: update the device")
            return reply
        try:
            reply, masked = decode_masked(data)
            check_fields(reply, plan)
            if reply.status is not Status.OK:
                raise Refused("malformed", "reply is masked and not OK")
            self.masked[node_id] = self._server.check_masked(plan.client_id, masked)
        except (CodecError, SecureAggregationError) as error:
            raise Refused("malformed", str(error)) from None
        return reply

    def settle(self, mean: ClientScalars, curvature: RelativeCurvature | None = None) -> None:
        """Set the cohort's mean, once the sum is known."""
        self._mean, self._curvature = mean, curvature

    def scalars(self) -> list[ClientScalars]:
        """Return the cohort's mean as one client's scalars, float64; empty as long as the sum is unknown."""
        return [self._mean] if self._mean is not None and self.replies else []

    def curvatures(self) -> list[RelativeCurvature]:
        """Return the cohort's mean curvature as one device's."""
        return [self._curvature] if self._curvature is not None and self.replies else []


@dataclass
class SecureAggregation:
    """Secure sums of a run, one per round."""

    config: RunConfig
    grid: Grid
    run_id: bytes
    reported: bool = False

    def __post_init__(self) -> None:
        self.attempts = Attempts(Path(self.config.output))

    def _peers(self) -> PeerKeys | None:
        """Return the devices' public keys of a deployment, read for each round: devices are enrolled and revoked.

        Raises:
            ConfigError: the file cannot be used.
        """
        path = Path(self.config.output) / PEERS_NAME
        return PeerKeys.parse(path.read_text(errors="replace")) if path.exists() else None

    def begin(self, server_round: int, plans: dict[int, Plan], weights: Mapping[int, int]) -> SecureRound:
        """Exchange keys and shares; the round's `plans` keep only the devices that completed this.

        Args:
            weights: numbers of examples by client id.
        """
        config = self.config
        weighted = config.weighting == "examples"
        terms = Terms(
            self.run_id,
            server_round,
            vector_length(config.local_steps, config.num_queries, curvature=config.measures_curvature),
            config.secure_threshold,
            config.secure_neighbours,
            weighted,
            plan_digest(next(iter(plans.values())), config) if plans else bytes(PLAN_BYTES),
        )
        counted = {plan.client_id: weights[plan.client_id] if weighted else 1 for plan in plans.values()}
        secure = SecureRound(self, SecureServer(terms, self._peers()), plans, counted)
        secure.prepare()
        return secure


class SecureRound:
    """One round's secure sum.

    Attributes:
        plans: plans of the devices that train, by node.
        attached: message entries for each plan.
        inbox: collector of their replies.
        faulty: devices that made the sum impossible, by client id, with what they did.
        others: nodes with which it may be possible in another attempt, where some device made it impossible.
    """

    def __init__(
        self, run: SecureAggregation, server: SecureServer, plans: dict[int, Plan], weights: Mapping[int, int]
    ) -> None:
        self._run, self._server, self._weights = run, server, weights
        self._all = plans
        self._nodes = {plan.client_id: node for node, plan in plans.items()}
        self.plans = dict(plans)
        self.attached: dict[int, bytes] = {}
        self.inbox = SecureInbox(plans, run.config.max_scalar, server)
        self._traffic = Traffic()
        self.others: set[int] = set()

    @property
    def faulty(self) -> dict[int, str]:
        """See the class."""
        return self._server.faulty

    def prepare(self) -> None:
        """Exchange keys, then shares; without enough of either no device is asked to train."""
        server = self._server
        try:
            self._step(dict.fromkeys(self._nodes, server.invitation()), server.add_advertisement)
            self._report_signatures(server.signed(), len(self._nodes))
            self._step(server.close_advertising(), server.add_shares)
            sharers = server.close_sharing(self._weights)
        except SecureAggregationError as error:
            self.inbox.refuse("too-few", f"secure sum: {error}")
            sharers = {}
        self.attached = {self._nodes[client]: data for client, data in sharers.items()}
        self.plans = {node: plan for node, plan in self._all.items() if node in self.attached}

    def _report_signatures(self, signed: int, asked: int) -> None:
        if not self._run.reported:
            self._run.reported = True
            trust = (
                "" if signed == asked else "; those that did not, and have no peer-keys, trust this server with keys"
            )
            level = logging.INFO if signed == asked else logging.WARNING
            logger.log(level, f"secure aggregation: {signed} of {asked} devices signed their keys{trust}")

    def finish(self, exchange: Exchange) -> int:
        """Let the survivors unmask the sum; return their number, 0 if that fails. `exchange` gets the steps' bytes."""
        inbox, server = self.inbox, self._server
        masked = {self._all[node].client_id: inbox.masked[node] for node in inbox.replies}
        checksum = next((reply.checksum for reply in inbox.replies.values()), 0)
        try:
            if self.attached:
                self._step(server.close_masking(masked, checksum), server.add_consent)
                self._step(server.close_consent(), server.add_revealed)
                self._settle(server.total(), masked)
        except SecureAggregationError as error:
            inbox.refuse("too-few", f"secure sum: {error}")
        suspects = server.disputed | server.faulty
        for client, reason in suspects.items():
            self._fail(self._nodes[client], "secure-sum", reason)
        if suspects and self._run.attempts.count < _MOST_REPEATED:
            self.others = inbox.replies.keys() - inbox.failed.keys()
        if not inbox.scalars():
            inbox.replies.clear()
        exchange.traffic.include(self._traffic)
        return len(inbox.replies)

    def _fail(self, node: int, reason: str, detail: str) -> None:
        """Count a failure of a node, also of one whose vector is in the sum."""
        self.inbox.refuse(reason, detail)
        self.inbox.failed[node] = reason, detail

    def _settle(self, total: NDArray[np.int64], masked: Mapping[int, NDArray[np.uint64]]) -> None:
        config, plan = self._run.config, next(iter(self.plans.values()))
        weight = sum(self._server.weights[client] for client in masked)
        shape, grid = (config.local_steps, config.num_queries), grid_of(plan.privacy)
        mean = means_of(self._noised(total, plan), weight, shape, grid)
        curvature = mean_curvature_of(total, len(masked)) if plan.curvature else None
        self.inbox.settle(ClientScalars(min(masked), plan.seed, weight, mean), curvature)

    def _noised(self, total: NDArray[np.int64], plan: Plan) -> NDArray[np.int64]:
        """Return the sum with the server's noise, if the server adds it; the last number stays 0."""
        config = self._run.config
        if config.privacy != "device" or config.noise_by != "server" or plan.privacy is None:
            return total
        sigma = replace(plan.privacy, noise_multiplier=config.noise_multiplier).sigma_units
        return total + np.array([*discrete_gaussians(len(total) - 1, sigma), 0], np.int64)

    def _step(self, outgoing: Mapping[int, bytes], take: Take) -> None:
        """Send one request to devices, by client id; a device that fails it is left out of later steps."""
        timeout = min(_STEP_SECONDS, self._run.config.round_timeout)
        messages = [self._message(self._nodes[client], data, timeout) for client, data in outgoing.items()]
        silent = {self._nodes[client]: client for client in outgoing}
        started = time.monotonic()
        for answer in ask(self._run.grid, messages, timeout):
            node = answer.metadata.src_node_id
            if (client := silent.pop(node, None)) is None:
                continue
            if answer.has_error():
                self._fail(node, "no-answer", f"client {client}: {plain(str(answer.error.reason))}")
                continue
            data = payload_of(answer)
            self._traffic.received(node, len(data), serialised_size(answer.content))
            try:
                if message := device_error(answer):
                    raise SecureAggregationError(message)
                take(client, data)
            except (CodecError, SecureAggregationError) as error:
                self._fail(node, "secure-sum", f"client {client}: {error}")
        for node, client in silent.items():
            waited = f"{time.monotonic() - started:.0f} s"
            self._fail(node, "no-answer", f"client {client} did not take a step of the secure sum in {waited}")

    def _message(self, node: int, data: bytes, timeout: float) -> Message:
        content = RecordDict({CONTENT: ConfigRecord({"secure": data, SECONDS_LEFT: max(1, round(timeout))})})
        self._traffic.sent(node, len(data), serialised_size(content))
        group = str(self._all[node].server_round)
        return Message(content, dst_node_id=node, message_type=SECURE, ttl=timeout + _TTL_SLACK, group_id=group)


def secure_aggregation(config: RunConfig, grid: Grid, header: LedgerHeader) -> SecureAggregation | None:
    """Return the secure aggregation of a run; None if `secure-aggregation` is off."""
    return SecureAggregation(config, grid, run_id_of(header)) if config.secure_aggregation else None
