"""The device's own account of the privacy spent, independent of what servers count: one file for all runs.

The limit is for the recordings, not for a run: another run continues the same account. An answer is charged on disk
before it leaves; removing the file, as for other recordings, starts a new account.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from zo_common.binary.durable import PRIVATE, seal, unseal, write_durably
from zo_common.binary.locked import locked
from zo_common.errors import BudgetSpent, CodecError, ConfigError, ProtocolMismatch, Refusal
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.charges import release_of
from zo_common.wire.plan import Plan

ACCOUNT_NAME = "privacy.account"
_KIND, _VERSION = b"ZOPA", 1


class PrivacyAccount:
    """The device's own account.

    Args:
        path: the file; its folder exists.
        max_epsilon, max_delta: maximum cost of all answers together, by this device's count.

    Raises:
        ConfigError: a limit that allows nothing, or everything.
    """

    def __init__(self, path: Path, max_epsilon: float, max_delta: float = 1e-6) -> None:
        if not 0 < max_epsilon < float("inf") or not 0 < max_delta < 1:
            raise ConfigError(
                f"max-epsilon is {max_epsilon} at max-delta {max_delta}, expected a positive number and a small "
                "probability, such as 8 and 1e-6"
            )
        self._path, self.max_epsilon, self.max_delta = path, max_epsilon, max_delta

    @property
    def epsilon(self) -> float:
        """The ε spent so far."""
        return epsilon_spent(self._read(), self.max_delta)

    def check(self, plan: Plan, size: int) -> None:
        """Refuse a plan whose answer would cost more than is left.

        Args:
            size: number of this device's utterances.

        Raises:
            ConfigError: that, or an answer without noise, or an account that cannot be read.
        """
        self._after(plan, size)

    def charge(self, plan: Plan, size: int) -> None:
        """Enter an answer, on disk when this returns; it must not leave if this raises. Processes take turns.

        Raises:
            ConfigError: as `check`, or the account cannot be written.
        """
        try:
            with locked(self._path):
                spent = self._after(plan, size)
                rows = [[r.noise_multiplier, r.batch, r.examples, n] for r, n in sorted(spent.items())]
                write_durably(self._path, seal(_KIND, _VERSION, json.dumps(rows).encode()), PRIVATE)
        except OSError as error:
            raise ConfigError(
                f"the privacy account {self._path} cannot be written ({error.strerror}): nothing is answered"
            ) from None

    def refuse_counts(self) -> None:
        """Refuse an evaluation, whose error counts carry no noise.

        Raises:
            Refusal: always.
        """
        raise Refusal("this device's owner limits ε, error counts carry no noise: set evaluate-on=server")

    def refuse_bare(self, plan: Plan) -> None:
        """Refuse a plan whose answer carries no noise of this device: it has no place in the account.

        Raises:
            Refusal: that.
        """
        if plan.privacy is None or not plan.privacy.noise_multiplier:
            raise Refusal(
                "this device's owner limits ε, the plan asks for scalars without noise of this "
                'device: set privacy="example", or "device" with noise-by="devices"'
            )

    def _after(self, plan: Plan, size: int) -> Counter[Release]:
        self.refuse_bare(plan)
        asked = plan.privacy
        assert asked is not None
        release, times = release_of(asked.level, asked.noise_multiplier, plan.local_steps, plan.batch_size, size)
        spent = self._read()
        before = epsilon_spent(spent, self.max_delta)
        spent[release] += times
        if (after := epsilon_spent(spent, self.max_delta)) > self.max_epsilon:
            raise BudgetSpent(
                f"this device's owner allows ε {self.max_epsilon:g} at δ {self.max_delta:g}, round {plan.server_round} "
                f"would take it from {before:.3f} to {after:.3f}: ask for more noise, or leave this device out"
            )
        return spent

    def _read(self) -> Counter[Release]:
        try:
            rows = json.loads(unseal(self._path.read_bytes(), _KIND, _VERSION))
            return Counter({Release(float(noise), int(batch), int(size)): int(n) for noise, batch, size, n in rows})
        except FileNotFoundError:
            return Counter()
        except (OSError, CodecError, ProtocolMismatch, ValueError, TypeError) as error:
            raise ConfigError(
                f"the privacy account {self._path} cannot be read ({error}), so the amount spent is unknown: put a "
                "backup in its place"
            ) from None
