"""Whether an earlier answer may be given again: the owner's checks are made before it is looked up, and are in its key.

An answer of one set of terms is not to be shown under another: not in the clear what was masked, not without an account
what was counted, not by a stricter owner what a laxer one allowed.
"""

from __future__ import annotations

from client.device.checks import check_seed
from client.device.demands import Demands
from client.device.masked_seeds import MaskedSeeds
from client.device.privacy_account import PrivacyAccount
from client.device.private_steps import check_demand
from client.device_identity import DeviceIdentity
from client.worker.job import Kind
from zo_common.config.run import RunConfig
from zo_common.errors import ZOError
from zo_common.wire.plan import Plan

_READ = ("secure_aggregation", "privacy", "noise_multiplier", "noise_by", "run_seed", "directions", "aggregation")


def terms_of(config: RunConfig, demands: Demands, account: PrivacyAccount | None, secure: bytes) -> tuple[object, ...]:
    """Return all that the checks of a request read, and the list of sharers that its mask is for."""
    limit = (account.max_epsilon, account.max_delta) if account is not None else None
    return demands, limit, secure, *(getattr(config, name) for name in _READ)


def may_repeat(
    kind: Kind,
    plan: Plan,
    config: RunConfig,
    identity: DeviceIdentity,
    demands: Demands,
    account: PrivacyAccount | None,
    masked: MaskedSeeds | None,
) -> bool:
    """Return whether the owner allows this answer now; where not, the work itself says why.

    Args:
        config: with the split of an evaluation.
        masked: seeds that are not to be answered in the clear; None for an answer that is masked.
    """
    try:
        if kind == "evaluate":
            demands.check_counts(config.train_split)
            if account is not None:
                account.refuse_counts()
        elif kind == "train":
            demands.check_plan(config, plan)
            check_demand(config, plan)
            check_seed(config, plan, identity)
            if masked is not None:
                masked.refuse_bare(plan.seed)
            if account is not None:
                account.refuse_bare(plan)
    except ZOError:
        return False
    return True
