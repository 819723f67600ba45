"""Server side of a run's differential privacy: the noise, each device's remaining budget, and each round's charge.

The mechanism and its proof are in `zo_common.privacy.mechanism`; this module does the accounting. A device is charged
for every answer it was asked for, whether it answered or not.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_low

from server.devices.roster import Member
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.errors import ConfigError, RunStopped
from zo_common.ledger.file import LedgerFile, read_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.privacy.accountant import Release, epsilon_spent, noise_for
from zo_common.privacy.charges import LOG_NAME, Charge, PrivacyLog, most_spent, release_of
from zo_common.privacy.mechanism import Mechanism, PrivacySettings, noised_mean, share_of_noise
from zo_common.wire.plan import Plan

logger = logging.getLogger(__name__)
_MOST_MEDIANS = 4  # that one device's number of utterances may count for
_MOST_NAMED = 8


def settle_noise(config: RunConfig, members: Sequence[Member], ledger: Path) -> RunConfig:
    """Return the settings with the run's noise multiplier: the given one, the ledger's, or the least for the target.

    The least is computed for all rounds and for the device with the fewest utterances, since they are sampled most
    often, of those with at least half the median number: what one device claims decides over nobody else's noise. A
    device with fewer still takes part until its own ε is spent. Of a claim, four times the median counts for δ.

    Raises:
        ConfigError: δ is too large for so many utterances or devices, the target cannot be reached, or a run is resumed
            with other noise.
    """
    settings = config.privacy_settings
    if settings is None:
        return config
    if config.resume and ledger.exists():
        stored = float(read_ledger(ledger).header.settings.get("noise-multiplier", 0.0))
        if stored and settings.noise_multiplier in (0.0, stored):
            return replace(config, noise_multiplier=stored)
        return config  # `refuse_fixed_changes` reports the difference
    counts = [m.num_examples for m in members]
    median = median_low(counts)
    believed = sum(min(count, _MOST_MEDIANS * median) for count in counts)
    settings.check_population(believed if settings.level == "example" else len(counts))
    if settings.noise_multiplier:
        return config
    fewest = min(count for count in counts if 2 * count >= median)
    if settings.level == "example" and (few := [m.client_id for m in members if m.num_examples < fewest]):
        logger.warning(
            f"{len(few)} devices have less than half the median number of utterances ({median}) and will take part in "
            f"fewer rounds, as their own ε is spent sooner: {', '.join(map(str, few[:_MOST_NAMED]))}"
        )
    release, times = release_of(settings.level, 1.0, config.local_steps, config.batch_size, fewest)
    target = settings.target_epsilon, settings.target_delta
    noise = noise_for(*target, times * config.num_server_rounds, release.batch, release.examples)
    return replace(config, noise_multiplier=noise)


class PrivacyGuard:
    """Privacy accountant of a run: charges devices for each round, and stops the run before one exceeds the target.

    Args:
        config: settings with the noise multiplier set (`settle_noise`).
        ledger: the run's.
    """

    def __init__(self, config: RunConfig, settings: PrivacySettings, ledger: LedgerFile, resumed: bool) -> None:
        self._config, self._settings, self._ledger = config, settings, ledger
        self._spent_then: dict[int, float] = {}  # ε of each device after one more answer
        path = Path(config.output) / LOG_NAME
        # a run killed before its first line may have left only one of the two files
        self.log = PrivacyLog.open(path) if resumed and (path.exists() or ledger.ledger.records) else _new_log(path)
        self.log.check_terms(config.to_mapping())
        self.log.check_against(ledger.chains, answered_rounds(ledger.ledger))

    @property
    def epsilon(self) -> float:
        """The largest ε that any device has spent."""
        return most_spent(self.log.spent, self._settings.target_delta)

    def able(self, server_round: int, members: list[Member]) -> list[Member]:
        """Return the members that can be asked once more within the target, before some of them are drawn.

        Raises:
            RunStopped: there are fewer of them than a round needs.
        """
        delta = self._settings.target_delta
        after = {m.client_id: self._after(m) for m in members}
        spent = {client: epsilon_spent(account, delta) for client, account in after.items()}
        able = [m for m in members if spent[m.client_id] <= self._settings.target_epsilon]
        self._spent_then = spent
        if len(able) < min(len(members), max(1, self._config.min_replies)):
            raise RunStopped(
                f"the privacy budget is spent: round {server_round} would take devices from ε {self.epsilon:.3f} to "
                f"{max(spent.values()):.3f}, target-epsilon is {self._settings.target_epsilon:g} at "
                f"δ {delta:g}; the ledger holds the model after round {server_round - 1}"
            )
        return able

    def charge(self, server_round: int, members: list[Member]) -> None:
        """Charge members, of those that were `able` in this round, durably.

        Raises:
            LedgerError: the charge cannot be written; no device may be asked.
        """
        if members:
            others = most_spent(self.log.spent, self._settings.target_delta)
            most = max(others, *(self._spent_then[m.client_id] for m in members))
            self.log.append(self._charge(server_round, members, most))

    def _release(self, examples: int) -> tuple[Release, int]:
        config = self._config
        return release_of(
            self._settings.level, config.noise_multiplier, config.local_steps, config.batch_size, examples
        )

    def _after(self, member: Member) -> Counter[Release]:
        release, times = self._release(member.num_examples)
        return self.log.spent.get(member.client_id, Counter()) + Counter({release: times})

    def _charge(self, server_round: int, members: Sequence[Member], epsilon: float) -> Charge:
        devices: dict[int, list[int]] = {}
        for member in members:
            examples = member.num_examples if self._settings.level == "example" else 1
            devices.setdefault(examples, []).append(member.client_id)
        return Charge(
            server_round=server_round,
            ledger=self._ledger.chains[-1].hex(),
            level=self._settings.level,
            noise_multiplier=self._config.noise_multiplier,
            steps=self._config.local_steps,
            batch=self._config.batch_size,
            devices=devices,
            epsilon=epsilon,
            delta=self._settings.target_delta,
        )

    def ask(self, plan: Plan, member: Member) -> Plan:
        """Return the plan with this device's clipping and noise."""
        config, clip_norm, noise = self._config, self._settings.clip_norm, self._config.noise_multiplier
        if self._settings.level == "example":
            return replace(plan, privacy=Mechanism("example", clip_norm, noise, member.num_examples))
        masked = False
        if self._settings.noise_by == "server":
            noise = 0.0
        elif config.secure_aggregation:
            masked = True  # a device knows the number of shares from the secure sum
        else:  # a round counts only with `min-replies` replies, whose sum then has enough noise
            noise = share_of_noise(noise, config.min_replies)
        return replace(plan, privacy=Mechanism("device", clip_norm, noise, 1, masked))

    def noised(self, scalars: list[ClientScalars]) -> list[ClientScalars]:
        """Return scalars with the server's noise, if the server adds it: every reply becomes the noisy mean of all.

        For a secure sum, the noise is added when the sum is opened.
        """
        settings = self._settings
        if (
            self._config.secure_aggregation
            or settings.level != "device"
            or settings.noise_by != "server"
            or not scalars
        ):
            return scalars
        mean = noised_mean([s.projected_grads for s in scalars], settings.clip_norm, self._config.noise_multiplier)
        return [replace(s, projected_grads=mean) for s in scalars]

    def describe(self) -> str:
        """Return the run's privacy guarantee in words, for the operator."""
        s, noise = self._settings, self._config.noise_multiplier
        unit = "one utterance" if s.level == "example" else f"one device, noise by the {s.noise_by}"
        if s.level == "device" and s.noise_by == "devices":
            seen = "under the masks" if self._config.secure_aggregation else "each reply itself has a share of it alone"
            unit += f", {seen}"
        return (
            f"privacy: {s.level}-level ({unit}), at most ε {s.target_epsilon:g} at δ {s.target_delta:g}; clip norm "
            f"{s.clip_norm:g}, noise multiplier {noise:g}, spent so far ε {self.epsilon:.3f}"
        )


def privacy_guard(config: RunConfig, ledger: LedgerFile, resumed: bool) -> PrivacyGuard | None:
    """Return the privacy guard of a run; None for a run without privacy.

    Raises:
        LedgerError, LedgerAltered: the log of charges is missing, or belongs to another ledger.
    """
    settings = config.privacy_settings
    if settings is None:
        return None
    guard = PrivacyGuard(config, settings, ledger, resumed)
    logger.info(guard.describe())
    return guard


def answered_rounds(ledger: Ledger) -> dict[int, list[int]]:
    """Return the client ids of each round whose scalars the ledger holds; empty lists for shared directions.

    A guard's record repeats scalars of earlier rounds times other factors. Noised scalars cost nothing when repeated,
    so they count only for the first round that holds them.
    """
    shared = ledger.header.settings.get("directions") == "shared"
    found: dict[int, list[int]] = {}
    seen: set[tuple[int, int]] = set()
    for record in ledger.records:
        fresh = [c for c in record.contributions if (c.seed, c.client_id) not in seen]
        seen.update((c.seed, c.client_id) for c in fresh)
        if fresh:
            found[record.server_round] = [] if shared else [c.client_id for c in fresh]
    return found


def _new_log(path: Path) -> PrivacyLog:
    if path.exists():
        raise ConfigError(f"{path} exists without its ledger: name another output, or remove both files of that run")
    return PrivacyLog.create(path)
