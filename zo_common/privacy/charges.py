"""The log of a run's privacy spending, `privacy.jsonl` beside its ledger, written before a round's plans are sent.

A line is durable before any device is asked: a server killed at any time has charged every answer that may have left
a device, also of rounds that are not in the ledger and are asked for again. Lines are chained by hash as
ledger records are, and each names the ledger's chain value at which its round began, so a log fits one ledger only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zo_common.binary.durable import sync_directory
from zo_common.errors import LedgerAltered, LedgerError
from zo_common.ledger.layout import CHAIN_BYTES
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.mechanism import LEAST_NOISE, LEVELS, MOST_NOISE, Privacy

LOG_NAME = "privacy.jsonl"
_PERSON = b"zo-asr/privacy/1"
_MOST = 1 << 32  # rounds, steps or utterances: beyond any run, and exact in the accountant's floats
_ROUNDING = 1e-9  # an ε recomputed by another release of a library may differ in its last bits

_TERMS = {
    "privacy": "level",
    "noise-multiplier": "noise_multiplier",
    "local-steps": "steps",
    "batch-size": "batch",
    "target-delta": "delta",
}
"""What a charge states of the run's settings, by their keys."""

Spent = dict[int, Counter[Release]]
"""Number of answers of each kind that were asked for, by client id."""


@dataclass(frozen=True)
class Charge:
    """The privacy cost of one round.

    Attributes:
        server_round: the round; if it is asked for again, it is charged again.
        ledger: the ledger's chain value before it, in hexadecimal.
        level, noise_multiplier, steps, batch: how each device answers: `steps` releases of Poisson samples of `batch`
            utterances for "example", one release of the whole reply for "device".
        devices: client ids of the devices asked, by their number of utterances.
        epsilon, delta: maximum that any device has spent after the round.
    """

    server_round: int
    ledger: str
    level: Privacy
    noise_multiplier: float
    steps: int
    batch: int
    devices: Mapping[int, Sequence[int]]
    epsilon: float
    delta: float

    def releases(self) -> Iterable[tuple[int, Release, int]]:
        """Yield client id, kind of answer, and number of such answers."""
        for examples, clients in self.devices.items():
            release, count = release_of(self.level, self.noise_multiplier, self.steps, self.batch, examples)
            yield from ((client, release, count) for client in clients)


def release_of(level: Privacy, noise_multiplier: float, steps: int, batch: int, examples: int) -> tuple[Release, int]:
    """Return the kind of answer that a device with `examples` utterances releases in a round, and their number."""
    if level == "device":
        return Release(noise_multiplier), 1
    return Release(noise_multiplier, batch, examples), steps


def add_to(spent: Spent, charge: Charge) -> None:
    """Add a charge to the devices' accounts."""
    for client, release, count in charge.releases():
        spent.setdefault(client, Counter())[release] += count


def most_spent(spent: Spent, delta: float) -> float:
    """Return the largest ε of any device."""
    accounts = {tuple(sorted(account.items())) for account in spent.values()}
    return max((epsilon_spent(dict(account), delta) for account in accounts), default=0.0)


class PrivacyLog:
    """The charges of a run, open for appending.

    Raises:
        LedgerError: the file cannot be read or written.
        LedgerAltered: a line does not follow from the one before it.
    """

    def __init__(self, path: Path, charges: list[Charge], chain: str, size: int) -> None:
        self.path = path
        self.charges = charges
        self.spent: Spent = {}
        for charge in charges:
            add_to(self.spent, charge)
        self._chain, self._size = chain, size

    @classmethod
    def create(cls, path: Path) -> PrivacyLog:
        """Create an empty log; the log of an earlier run without a ledger is never overwritten."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
            sync_directory(path.parent)
        except OSError as error:
            raise LedgerError(f"{path} cannot be created ({error.strerror}): name another output") from None
        return cls(path, [], "", 0)

    @classmethod
    def open(cls, path: Path) -> PrivacyLog:
        """Open the log of a run that continues; a last line torn by a crash was no charge yet, and is cut off."""
        charges, chain, size = _read(path)
        log = cls(path, charges, chain, size)
        log._cut_back()
        return log

    @classmethod
    def read(cls, path: Path) -> PrivacyLog:
        """As `open`, without changes to the file."""
        return cls(path, *_read(path))

    def append(self, charge: Charge) -> None:
        """Charge a round: on disk when this returns, not at all if it raises."""
        body = _text(charge)
        chain = _link(self._chain, body)
        line = (body[:-1] + f',"chain":"{chain}"}}\n').encode()
        try:
            with self.path.open("r+b") as file:
                file.seek(self._size)
                file.write(line)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(
                f"the privacy spent in round {charge.server_round} cannot be written to {self.path} "
                f"({error.strerror}): no device was asked"
            ) from None
        self._chain, self._size = chain, self._size + len(line)
        self.charges.append(charge)
        add_to(self.spent, charge)

    def _cut_back(self) -> None:
        try:
            if self.path.stat().st_size != self._size:
                with self.path.open("r+b") as file:
                    file.truncate(self._size)
                    os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be mended ({error.strerror})") from None

    def check_terms(self, settings: Mapping[str, Any]) -> None:
        """Check that devices were charged for what the run's settings have them answer.

        Args:
            settings: of the ledger's header, by their keys.

        Raises:
            LedgerAltered: a charge is for other noise, steps, batches, level or δ, or the header does not tell them.
        """
        for charge in self.charges:
            for key, name in _TERMS.items():
                if key not in settings or settings[key] != getattr(charge, name):
                    raise LedgerAltered(
                        f"{self.path}: round {charge.server_round} was charged for {key} {getattr(charge, name)}, the "
                        f"ledger's header says {settings.get(key, 'nothing of it')}: what was really spent is not in it"
                    )

    def check_against(self, chains: Sequence[bytes], answered: Mapping[int, Iterable[int]]) -> None:
        """Check that these are the charges of a ledger.

        Args:
            chains: chain value after the header and after each round.
            answered: client ids of the rounds that have scalars; empty if directions are shared.

        Raises:
            LedgerAltered: a charge belongs to another ledger, a round was not charged, or a line states less than was
                spent up to it.
        """
        asked: dict[int, set[int]] = {}
        spent: Spent = {}
        for charge in self.charges:
            number = charge.server_round
            if not 1 <= number <= len(chains) or chains[number - 1].hex() != charge.ledger:
                raise LedgerAltered(f"{self.path}: the charge of round {number} belongs to another ledger")
            asked.setdefault(number, set()).update(c for clients in charge.devices.values() for c in clients)
            add_to(spent, charge)
            if (found := most_spent(spent, charge.delta)) > charge.epsilon + _ROUNDING * max(1.0, found):
                raise LedgerAltered(
                    f"{self.path}: round {number} states ε {charge.epsilon:g}, its charges come to {found:g}"
                )
        for number, clients in answered.items():
            if number not in asked:
                raise LedgerAltered(f"{self.path}: round {number} of the ledger holds scalars that were not charged")
            if missing := set(clients) - asked[number]:
                raise LedgerAltered(f"{self.path}: device {min(missing)} was not charged for round {number}")


def _text(charge: Charge) -> str:
    fields = asdict(charge) | {"devices": {str(n): sorted(c) for n, c in sorted(charge.devices.items())}}
    return json.dumps(fields, separators=(",", ":"))


def _link(chain: str, body: str) -> str:
    data = bytes.fromhex(chain) + body.encode()
    return hashlib.blake2b(data, digest_size=CHAIN_BYTES, person=_PERSON).hexdigest()


def _read(path: Path) -> tuple[list[Charge], str, int]:
    """Return charges, the last chain value, and the number of bytes in whole lines."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be read ({error.strerror}): without it the privacy that the run has spent is unknown"
        ) from None
    charges: list[Charge] = []
    chain, size = "", 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # torn by a crash, before its round began
        try:
            raw = json.loads(line)
            found = raw.pop("chain")
            charge = _charge(raw)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LedgerAltered(f"{path}: line {number} cannot be read: the file was altered or damaged") from None
        chain = _link(chain, _text(charge))
        if chain != found:
            raise LedgerAltered(f"{path}: line {number} does not match its hash chain: the file was altered")
        charges.append(charge)
        size += len(line)
    return charges, chain, size


def _charge(raw: dict[str, Any]) -> Charge:
    """Decode a charge; raise ValueError, TypeError, KeyError or AttributeError for what no server writes."""
    devices = {int(n): clients for n, clients in raw.pop("devices").items()}
    charge = Charge(**raw, devices=devices)
    ids = [client for clients in devices.values() for client in clients]
    counts = charge.server_round, charge.steps, charge.batch, *devices
    reals = charge.noise_multiplier, charge.epsilon, charge.delta
    if not (
        charge.level in LEVELS
        and all(type(count) is int and 1 <= count <= _MOST for count in counts)
        and all(type(client) is int and 0 <= client < 2**64 for client in ids)
        and all(type(real) in (int, float) for real in reals)
        and LEAST_NOISE <= charge.noise_multiplier <= MOST_NOISE
        and 0 <= charge.epsilon <= sys.float_info.max  # an int of a thousand digits is below infinity
        and 0 < charge.delta < 1
    ):
        raise ValueError("not a charge")
    return charge
