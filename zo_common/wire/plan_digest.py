"""The digest of what all devices of a secure sum are asked, for the terms that each of them signs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from zo_common.config.run import RunConfig, kebab
from zo_common.wire.plan import Plan, encode_plan

_PERSON = b"zo-asr/plan/v2"
MEASURED = (
    "clip_utterances",
    "entropy_weight",
    "fold_accents",
    "frozen_precision",
    "language",
    "loss_check",
    "min_confidence",
    "objective",
    "partition_by",
    "precision",
    "scale",
    "tail_tokens",
    "temperature",
    "text_column",
    "train_split",
    "trained_tensors",
)
"""Settings beside the plan on which a device's scalars depend."""


def plan_digest(plan: Plan, config: RunConfig) -> bytes:
    """Return BLAKE2b-256 of a plan's bytes without what is one device's, and of the settings that came with it.

    Round, seed, base model, checksum, estimator, ε, queries, local steps, batch size, learning rate, curvature, level,
    clip norm and noise are in it; a device's id, the records it lacks and its examples are not.

    Args:
        config: settings as the server sends them, without a device's own.
    """
    asked = plan.privacy and replace(plan.privacy, num_examples=1)
    common = replace(plan, client_id=0, records=(), privacy=asked)
    settings = {kebab(name): getattr(config, name) for name in MEASURED}
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(encode_plan(common) + text.encode(), digest_size=32, person=_PERSON).digest()
