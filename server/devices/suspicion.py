"""Reports of devices whose scalars are unrelated to the others', opposed to them, or copied.

Only with shared directions do the devices of a round measure the same K·q slopes. Honest devices then agree up to
noise and the differences of their speech. With independent directions there is nothing to compare.

1. Each round, a device's scalars are correlated with the mean of the others'. Each vector is first scaled to unit
length, so that no device dominates. Nothing is centred: an offset on all scalars is itself an attack.
2. Fisher's z = atanh(r) of a round has variance 1 / (K·(q − 1) − 2) for unrelated scalars (a leave-one-out step has
q − 1 degrees of freedom). The sum over rounds, weighted by the inverse variance, is a test whose power grows with
the rounds.
3. A device is unrelated if this sum is below `UNRELATED` standard deviations although one like the median device would
have `EXPECTED`; it is opposed below −`OPPOSED`. What is expected of a device is the median device's relation times
√(b / median b) with b utterances in a step, at most 1: where noise is large, a mean of b utterances correlates so. The
test is made every round, and only the rounds around the first in which `EXPECTED` is reached can go wrong: an honest
device is then below with probability 3e-5. One whose speech differs from all others may be reported correctly.
4. Scalars proportional to another device's for `COPIES` rounds in a row are copied, since batches differ. The same
holds for scalars proportional to the previous round's update.

A report informs the operator: it excludes no device, and is withdrawn when the evidence is gone. It assumes an honest
majority. Replies are compared as they came, so never where it is the server that adds the noise of a guarantee: a
report would tell what the noise hides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from server.devices.device_status import DeviceStatuses
from server.devices.evidence import Evidence
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
from zo_common.ledger.record import Record

UNRELATED = 2.0
EXPECTED = 6.0
OPPOSED = 4.0
COPIES = 3
SAME = 0.9999  # correlation of a copy
LEAST_TO_COPY = 6  # degrees of freedom: with fewer, chance makes two devices agree
_ROWS = 256  # rows of the matrix of all pairs computed at a time
NOTHING_TO_COMPARE = (
    "with independent directions no device's scalars can be compared with the others': hostile devices are not found"
)

Vectors = NDArray[np.float64]


class Suspicions:
    """Tests every round's valid scalars; the statistics are kept in `DeviceStatuses`.

    Args:
        comparable: whether replies may be compared at all.
        batch: utterances of a local step, of devices that have so many.
    """

    def __init__(self, statuses: DeviceStatuses, comparable: bool, batch: int) -> None:
        self._statuses = statuses
        self._comparable, self._batch = comparable, batch
        self._pairs: dict[tuple[int, int], int] = {}  # how many rounds in a row two devices sent the same

    @classmethod
    def of(cls, config: RunConfig, statuses: DeviceStatuses) -> Suspicions:
        """Return the tests of a run: of shared directions, and of replies that need no more noise."""
        bare = config.privacy == "device" and config.noise_by == "server"
        return cls(statuses, config.directions == "shared" and not bare, config.batch_size)

    def review(self, server_round: int, clients: Sequence[ClientScalars], last: Record | None) -> list[str]:
        """Add a round to the statistics; return messages on devices whose report has changed.

        Args:
            clients: the round's valid replies.
            last: the round before, as the ledger has it.
        """
        if not self._comparable or len(clients) < 3:
            return []
        steps, queries = clients[0].projected_grads.shape
        freedom = steps * (queries - 1)
        if freedom < 3:
            return []
        ordered = sorted(clients, key=lambda c: c.client_id)
        ids = [c.client_id for c in ordered]
        unit = _unit(np.stack([c.projected_grads.astype(np.float64).reshape(-1) for c in ordered]))
        self._weigh(ids, unit, freedom - 2)
        sizes = np.minimum([c.num_examples for c in ordered], self._batch)
        for client, share in zip(ids, np.minimum(np.sqrt(sizes / np.median(sizes)), 1.0).tolist(), strict=True):
            self._statuses.of(client).scalars.share = share
        if freedom >= LEAST_TO_COPY:
            self._count_copies(ids, unit)
            self._count_echoes(ids, unit, last)
        return list(self._words(ids))

    @property
    def reported(self) -> dict[str, str]:
        """Client id → report, of all reported devices of the run."""
        return {str(s.client_id): s.scalars.report for s in self._statuses if s.scalars.report}

    def _weigh(self, ids: list[int], unit: Vectors, information: float) -> None:
        others = unit.sum(axis=0) - unit
        related = np.clip((unit * _unit(others)).sum(axis=1), -0.999999, 0.999999)
        for client, r in zip(ids, related.tolist(), strict=True):
            evidence = self._statuses.of(client).scalars
            evidence.rounds += 1
            evidence.information += information
            evidence.score += information * math.atanh(r)

    def _count_copies(self, ids: list[int], unit: Vectors) -> None:
        alike: set[tuple[int, int]] = set()
        if not _votes(unit):
            for start in range(0, len(ids), _ROWS):
                rows, columns = np.nonzero(unit[start : start + _ROWS] @ unit.T > SAME)
                alike |= {(ids[start + i], ids[j]) for i, j in zip(rows, columns, strict=True) if start + i < j}
        here = set(ids)
        continued = {pair: count for pair, count in self._pairs.items() if pair in alike or not here.issuperset(pair)}
        self._pairs = continued | {pair: continued.get(pair, 0) + 1 for pair in alike}

    def _count_echoes(self, ids: list[int], unit: Vectors, last: Record | None) -> None:
        if last is None or len(last.contributions) != 1 or _votes(unit):
            return
        update = last.contributions[0].coefficients.astype(np.float64).reshape(1, -1)
        if update.shape[1] != unit.shape[1]:
            return
        same = np.abs(unit @ _unit(update)[0]) > SAME
        for client, echo in zip(ids, same.tolist(), strict=True):
            evidence = self._statuses.of(client).scalars
            evidence.echoes = evidence.echoes + 1 if echo else 0

    def _words(self, ids: list[int]) -> Iterator[str]:
        known = [s.scalars.relation for s in self._statuses if s.scalars.rounds]
        typical = float(np.median(known)) if known else 0.0
        twins = self._twins()
        for client in ids:
            evidence = self._statuses.of(client).scalars
            report = _report(evidence, typical, twins.get(client))
            if report and _kind(report) != _kind(evidence.report):
                yield f"device {client} is suspect: {report}"
            elif evidence.report and not report:
                yield f"device {client} is not suspect any more"
            evidence.report = report

    def _twins(self) -> dict[int, int]:
        """Return client id → the lowest other id that has sent the same scalars for `COPIES` rounds."""
        found: dict[int, int] = {}
        for (a, b), count in sorted(self._pairs.items()):
            if count >= COPIES:
                found.setdefault(a, b)
                found.setdefault(b, a)
        return found


def _report(evidence: Evidence, typical: float, twin: int | None) -> str:
    """Return the report on a device, or an empty string; the part before the colon is its kind."""
    found = f"{evidence.deviations:+.1f} standard deviations in {evidence.rounds} rounds"
    if twin is not None:
        return f"copies: its scalars are those of device {twin}, which no two batches give"
    if evidence.echoes >= COPIES:
        return f"copies: its scalars are the update of the round before, {evidence.echoes} rounds in a row"
    if evidence.deviations < -OPPOSED:
        return f"opposed: its scalars run against the others', {found}"
    expected = typical * evidence.share * math.sqrt(evidence.information)
    if expected >= EXPECTED and evidence.deviations < UNRELATED:
        return f"unrelated: its scalars have nothing to do with the others', {found}, {expected:.1f} expected"
    return ""


def _kind(report: str) -> str:
    return report.split(":", maxsplit=1)[0]


def _unit(vectors: Vectors) -> Vectors:
    """Scale rows to unit length; a row of zeros stays."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = vectors / np.where(largest > 0, largest, 1.0)
    length = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    return np.asarray(scaled / np.where(length > 0, length, 1.0))


def _votes(unit: Vectors) -> bool:
    """Return whether these are signs only: honest devices often send the same few signs."""
    return bool((np.abs(np.abs(unit) - np.abs(unit[:, :1])) < 1e-12).all())
