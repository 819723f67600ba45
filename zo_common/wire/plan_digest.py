"""The digest of what all devices of a secure sum are asked, for the terms that each of them signs."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from zo_common.wire.plan import Plan, encode_plan

_PERSON = b"zo-asr/plan/v1"


def plan_digest(plan: Plan) -> bytes:
    """Return BLAKE2b-256 of a plan's bytes without what is one device's: its id, the records it lacks, its examples.

    Round, seed, base model, checksum, estimator, ε, queries, local steps, batch size, learning rate, curvature, level,
    clip norm and noise are in it.
    """
    asked = plan.privacy and replace(plan.privacy, num_examples=1)
    common = replace(plan, client_id=0, records=(), privacy=asked)
    return hashlib.blake2b(encode_plan(common), digest_size=32, person=_PERSON).digest()
