"""Held-out evaluation on devices: they decode their own held-out speech and send error counts."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import astuple, replace
from statistics import median
from typing import Any

from server.devices.absences import ABSENT
from server.guards.device_losses import DeviceLosses
from server.messaging.byte_counts import ByteCounts
from server.messaging.foreign_text import plain
from zo_common.errors import CodecError
from zo_common.speech.metrics import ErrorCounts, Scores, headline_metric
from zo_common.wire.evaluation import EvaluationReply, decode_evaluation
from zo_common.wire.plan import Plan, Status

logger = logging.getLogger(__name__)
_MOST = 2  # a device counts as at most this many median ones: it reports its own number of utterances


class EvaluationInbox:
    """Collects one evaluation per device; an answer that does not match its plan is refused and counted.

    Args:
        down, up: bytes of the exchange that fills it, to and from devices.
    """

    def __init__(self, plans: dict[int, Plan], down: ByteCounts | None = None, up: ByteCounts | None = None) -> None:
        self._plans = plans
        self._down, self._up = down or ByteCounts(), up or ByteCounts()
        self.refused: Counter[str] = Counter()
        self.details: list[str] = []
        self.replies: dict[int, EvaluationReply] = {}
        self.broken: dict[int, EvaluationReply] = {}  # replies whose loss is not finite
        self.behind: dict[int, int] = {}
        self.absent: set[int] = set()  # nodes that were waited for in vain

    @property
    def accepted(self) -> int:
        """Number of valid replies."""
        return len(self.replies)

    def put(self, node_id: int, data: bytes) -> None:
        """Process one node's reply."""
        plan = self._plans.get(node_id)
        try:
            reply = decode_evaluation(data)
        except CodecError as error:
            self.refuse("malformed", str(error))
            return
        if plan is None or (reply.client_id, reply.server_round) != (plan.client_id, plan.server_round):
            self.refuse("not-asked", f"node {node_id} answered as client {reply.client_id}, round {reply.server_round}")
        elif node_id in self.replies or node_id in self.broken:
            self.refuse("duplicate", f"client {plan.client_id} answered twice")
        elif reply.status is Status.BEHIND:
            self.behind[node_id] = reply.have_round
        elif reply.status not in (Status.OK, Status.NON_FINITE):
            self.refuse(reply.status.reason, f"client {plan.client_id}: {plain(reply.message)}", node_id)
        elif plan.checksum and reply.checksum != plan.checksum:
            self.refuse("wrong-checksum", f"client {plan.client_id} evaluated at {reply.checksum:016x}")
        elif reply.status is Status.NON_FINITE:
            self.broken[node_id] = reply
            self.refuse(reply.status.reason, f"client {plan.client_id}: {plain(reply.message)}")
        else:
            self.replies[node_id] = reply

    def refuse(self, reason: str, detail: str, node_id: int | None = None) -> None:
        """Count a refusal."""
        self.refused[reason] += 1
        self.details.append(detail)
        if node_id is not None and reason in ABSENT:
            self.absent.add(node_id)

    def losses(self) -> DeviceLosses:
        """Return the losses at the state that most devices hold: a server may not know its checksum."""
        votes = Counter(reply.checksum for reply in (*self.replies.values(), *self.broken.values()))
        state, _ = votes.most_common(1)[0] if votes else (0, 0)
        sums = {
            r.client_id: (r.loss_sum, r.scores.utterances)
            for r in self.replies.values()
            if r.checksum == state and r.scores.utterances
        }
        broken = frozenset(r.client_id for r in self.broken.values() if r.checksum == state)
        return DeviceLosses(sums, broken, tuple(self.details), self._down.payload, self._up.payload)

    def logged_summary(self, server_round: int, language: str) -> dict[str, Any] | None:
        """Return an evaluation's summary, with its bytes, and log refusals; None without a reply."""
        for detail in self.details:
            logger.warning(f"evaluation after round {server_round}: refused: {detail}")
        if not self.replies:
            logger.warning(f"evaluation after round {server_round}: no device answered, nothing is recorded")
            return None
        return self.summary(language) | {"evaluation_bytes": {"down": self._down.payload, "up": self._up.payload}}

    def counts(self, language: str) -> list[dict[str, Any]]:
        """Return errors and units of the headline rate, one row a device, as `compare_devices` takes them."""
        rows = []
        for reply in self._bounded():
            scores = reply.scores
            found = scores.characters if headline_metric(language) == "cer" else scores.words
            row = {"device": reply.client_id, "utterances": scores.utterances}
            rows.append({**row, "errors": found.errors, "units": found.length})
        return rows

    def summary(self, language: str) -> dict[str, Any]:
        """Return the rates of the summed counts, as `zo_common.speech.evaluation` does, and the number of replies."""
        replies = self._bounded()
        scores = sum((reply.scores for reply in replies), Scores())
        loss = sum(reply.loss_sum for reply in replies) / max(scores.utterances, 1)
        return {"loss": loss, **scores.summary(language), "devices": len(self.replies)}

    def _bounded(self) -> list[EvaluationReply]:
        """Return the replies by client id, with counts scaled down where they are of more than two median devices."""
        replies = sorted(self.replies.values(), key=lambda reply: reply.client_id)
        sizes = [size for reply in replies if (size := reply.scores.utterances)]
        most = _MOST * median(sizes) if sizes else 0
        return [reply if reply.scores.utterances <= most else _scaled(reply, most) for reply in replies]


def _scaled(reply: EvaluationReply, most: float) -> EvaluationReply:
    scores, share = reply.scores, most / reply.scores.utterances
    words, characters, raw = (
        ErrorCounts(*(round(share * count) for count in astuple(kind)))
        for kind in (scores.words, scores.characters, scores.raw_words)
    )
    return replace(reply, loss_sum=share * reply.loss_sum, scores=Scores(words, characters, raw, round(most)))
