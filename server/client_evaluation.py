"""Held-out evaluation where the recordings are: devices decode their own held-out speech and send counts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from server.foreign_text import plain
from zo_common.errors import CodecError
from zo_common.evaluation_reply import EvaluationReply, decode_evaluation
from zo_common.messages import Plan, Status
from zo_common.metrics import Scores


class EvaluationInbox:
    """Collects one evaluation a device; anything that does not fit its plan is refused and counted."""

    def __init__(self, plans: dict[int, Plan]) -> None:
        self._plans = plans
        self.refused: Counter[str] = Counter()
        self.details: list[str] = []
        self.replies: dict[int, EvaluationReply] = {}
        self.behind: dict[int, int] = {}

    @property
    def accepted(self) -> int:
        """How many replies count."""
        return len(self.replies)

    def put(self, node_id: int, data: bytes) -> None:
        """Take one node's bytes."""
        plan = self._plans.get(node_id)
        try:
            reply = decode_evaluation(data)
        except CodecError as error:
            self.refuse("malformed", str(error))
            return
        if plan is None or (reply.client_id, reply.server_round) != (plan.client_id, plan.server_round):
            self.refuse("not-asked", f"node {node_id} answered as client {reply.client_id}, round {reply.server_round}")
        elif node_id in self.replies:
            self.refuse("duplicate", f"client {plan.client_id} answered twice")
        elif reply.status is Status.BEHIND:
            self.behind[node_id] = reply.have_round
        elif reply.status is not Status.OK:
            self.refuse(f"client-{reply.status.name.lower()}", f"client {plan.client_id}: {plain(reply.message)}")
        elif plan.checksum and reply.checksum != plan.checksum:
            self.refuse("wrong-checksum", f"client {plan.client_id} evaluated at {reply.checksum:016x}")
        else:
            self.replies[node_id] = reply

    def refuse(self, reason: str, detail: str, node_id: int | None = None) -> None:
        """Count a refusal."""
        self.refused[reason] += 1
        self.details.append(detail)

    def summary(self) -> dict[str, Any]:
        """Rates of the summed counts, as `client.evaluation.Evaluation.summary` gives them, and how many answered."""
        scores = sum((reply.scores for reply in self.replies.values()), Scores())
        loss = sum(reply.loss_sum for reply in self.replies.values()) / max(scores.utterances, 1)
        return {
            "loss": loss,
            "wer": scores.wer,
            "cer": scores.cer,
            "raw_wer": scores.raw_wer,
            "utterances": scores.utterances,
            "devices": len(self.replies),
        }
