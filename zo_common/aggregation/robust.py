"""Byzantine-robust aggregation: from a round's scalars to the ledger's coefficients.

With shared directions, coordinate (k, j) of every device's scalars is the slope along one and the same direction, so
the rules of the robust-aggregation literature apply to vectors of K·q numbers instead of millions of weights. With
independent directions no two devices measure along the same direction: medians, trimmed means, Krum and votes have no
meaning there. Each device can then only be bounded separately (norm clipping, `max-scalar`).

Guarantees are stated for f hostile devices among the n of a round. No rule can distinguish a hostile device from an
honest one with unusual speech: every robust rule also discards some of the latter.

Results are bit-identical on any machine: devices in order of their ids, float64, sequential sums, rounded once to
float32. The ledger records coefficients, so a replay does not depend on the rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from zo_common.aggregation.mean import ClientScalars, Weighting, aggregate
from zo_common.errors import ConfigError, TooFewReplies
from zo_common.ledger.record import Contribution

Aggregation = Literal["mean", "median", "trimmed-mean", "norm-clipping", "krum", "multi-krum", "sign-vote"]
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
MOST_BYZANTINE = 0.49
Floats = NDArray[np.float64]


def faults(byzantine_share: float, devices: int) -> int:
    """Return f, the number of a round's devices that may be hostile: their share, rounded up."""
    return math.ceil(byzantine_share * devices - 1e-9)


def least_devices(byzantine_share: float, extra: int) -> int:
    """Return the least n such that n' ≥ 2f + extra holds for all n' ≥ n devices, with f = `faults`; at least 1.

    Rounding f up makes the condition jump: where 7 devices are enough, 6 and 8 need not be.
    """
    enough = math.ceil((extra + 2) / (1 - 2 * byzantine_share))  # beyond this, f < share · n + 1 guarantees it
    while enough > 1 and enough - 1 >= 2 * faults(byzantine_share, enough - 1) + extra:
        enough -= 1
    return enough


class Aggregator(ABC):
    """A rule from a round's valid replies to contributions for the ledger.

    Attributes:
        name: the rule's name in the run config.
        bounds_size: whether the rule limits the influence of large scalars. Then only the result must fit the lattice,
            and no device can empty a round by sending numbers that are refused.
    """

    name: Aggregation
    bounds_size = True

    @abstractmethod
    def aggregate(self, clients: Sequence[ClientScalars], learning_rate: float) -> tuple[Contribution, ...]:
        """Return the round's coefficients, float32 (K, q), as one contribution of client 0 or one per device.

        Args:
            clients: at least one, in any order; with shared directions all have one seed and one shape (K, q).
            learning_rate: step size for the mean over queries.

            Raises:
                TooFewReplies: there are too few devices for the rule's guarantee.
        """

    def used_part(self, client: ClientScalars) -> ClientScalars:
        """Return the part of a reply that this rule uses; limits on the size of scalars apply to it."""
        return client

    @property
    def least_replies(self) -> int:
        """Return the least number of devices per round for the rule's guarantee."""
        return 1


class Mean(Aggregator):
    """FedAvg of the clients' deltas (`zo_common.aggregation.mean`), for shared and independent directions.

    It is not robust: the breakdown point is 0; a single device can move the result anywhere within `max-scalar`.
    """

    name = "mean"
    bounds_size = False

    def __init__(self, weighting: Weighting, shared: bool) -> None:
        self._weighting, self._shared = weighting, shared

    def aggregate(self, clients: Sequence[ClientScalars], learning_rate: float) -> tuple[Contribution, ...]:
        """As `Aggregator.aggregate`."""
        return aggregate(clients, learning_rate, self._weighting, self._shared)


class NormClipping(Aggregator):
    """Uniform mean of replies whose Euclidean norm over all K·q scalars is cut to a bound, the direction kept.

    The bound is given, or the median of the round's norms, which up to f < n/2 hostile devices cannot push beyond the
    honest ones' range. For shared and independent directions: random ±1 directions of many weights are nearly
    orthogonal, so the norm of the scalars is that of the update but for one factor.

    Resists size, not direction: each device moves the result by at most bound / n (Sun et al. 2019, arXiv 1911.07963),
    however large its scalars; f devices that agree move it by f · bound / n, and where their share is large and honest
    scalars are mostly noise, that is more than the signal: clipping weakens an attack where a median stops it.
    """

    name = "norm-clipping"

    def __init__(self, byzantine_share: float, bound: float, shared: bool) -> None:
        self._share, self._bound, self._shared = byzantine_share, bound, shared

    def aggregate(self, clients: Sequence[ClientScalars], learning_rate: float) -> tuple[Contribution, ...]:
        """As `Aggregator.aggregate`; with independent directions one contribution per device."""
        _expect_devices(self, clients, 0 if self._bound else 2 * faults(self._share, len(clients)) + 1)
        norms = np.array([_norm(c.projected_grads) for c in clients])
        bound = self._bound or float(_middle(norms))
        clipped = [_clip(c, norm, bound) for c, norm in zip(clients, norms.tolist(), strict=True)]
        return aggregate(clipped, learning_rate, "uniform", self._shared)

    @property
    def least_replies(self) -> int:
        """As `Aggregator.least_replies`."""
        return 1 if self._bound else least_devices(self._share, 1)


class SharedRule(Aggregator):
    """A rule for vectors with the same coordinates on every device; each device counts once.

    Args:
        byzantine_share: share of a round's devices that may be hostile; f is their number, rounded up.
    """

    extra = 1  # n ≥ 2f + extra

    def __init__(self, byzantine_share: float) -> None:
        self._share = byzantine_share

    @abstractmethod
    def combine(self, grads: Floats, faulty: int) -> Floats:
        """Combine the devices' vectors, (n, d) in order of their ids, of which `faulty` may be hostile, into (d,)."""

    def aggregate(self, clients: Sequence[ClientScalars], learning_rate: float) -> tuple[Contribution, ...]:
        """As `Aggregator.aggregate`; coefficients are −learning_rate · combined / q, all in float64, rounded once."""
        faulty = faults(self._share, len(clients))
        _expect_devices(self, clients, 2 * faulty + self.extra)
        ordered = sorted((self.used_part(c) for c in clients), key=lambda c: c.client_id)
        shape = ordered[0].projected_grads.shape
        grads = np.stack([c.projected_grads.astype(np.float64).reshape(-1) for c in ordered])
        # + 0.0: −0.0 and 0.0 are recorded as the same zero
        coefficients = -learning_rate * self.combine(grads, faulty) / shape[1] + 0.0
        return (Contribution(ordered[0].seed, 0, coefficients.reshape(shape).astype(np.float32)),)

    @property
    def least_replies(self) -> int:
        """As `Aggregator.least_replies`."""
        return least_devices(self._share, self.extra)


class Median(SharedRule):
    """Median of each coordinate; for an even number of devices the mean of the middle two.

    Breakdown point 1/2: while f < n/2, each coordinate stays within the honest devices' range whatever the others send
    (Yin et al. 2018, arXiv 1803.01498). Within that range colluding devices can shift it by some standard deviations
    ("a little is enough", Baruch et al. 2019, arXiv 1902.06156). It is less efficient: for normal noise the variance
    is π/2 times the mean's.
    """

    name = "median"

    def combine(self, grads: Floats, faulty: int) -> Floats:
        """As `SharedRule.combine`."""
        return _middle(grads)


class TrimmedMean(SharedRule):
    """Mean of each coordinate without its f smallest and f largest values.

    Breakdown point `byzantine-share`: with at most f hostile devices each coordinate stays within the honest range, and
    the error is of the optimal order (Yin et al. 2018, arXiv 1803.01498); one device more than f breaks it.
    """

    name = "trimmed-mean"

    def combine(self, grads: Floats, faulty: int) -> Floats:
        """As `SharedRule.combine`."""
        kept = np.sort(grads, axis=0)[faulty : len(grads) - faulty]
        return _sum_in_order(kept.T) / len(kept)


class Krum(SharedRule):
    """The reply with the smallest sum of squared distances to its n − f − 2 nearest others; ties go to the lowest id.

    Blanchard et al. 2017 (arXiv 1703.02757): needs n ≥ 2f + 3, and then picks a vector near the honest mean if honest
    replies are nearer to each other than their mean is to zero. The round learns from one device's batch only, and
    colluding devices with one vector within the honest spread may be picked because they are so close to each other.
    """

    name = "krum"
    extra = 3

    def combine(self, grads: Floats, faulty: int) -> Floats:
        """As `SharedRule.combine`."""
        return np.asarray(grads[krum_order(grads, faulty)[0]])


class MultiKrum(SharedRule):
    """Mean of the n − f replies with the best Krum scores; ties go to the lower id.

    Blanchard et al. 2017: as robust as Krum, n ≥ 2f + 3, and averages noise over most of the devices. It drops exactly
    f devices each round, honest ones if none is hostile.
    """

    name = "multi-krum"
    extra = 3

    def combine(self, grads: Floats, faulty: int) -> Floats:
        """As `SharedRule.combine`."""
        chosen = np.sort(krum_order(grads, faulty)[: len(grads) - faulty])
        return _sum_in_order(grads[chosen].T) / len(chosen)


class SignVote(SharedRule):
    """The majority of the devices' signs for each direction, ±1, and 0 for a tie: the learning rate is the step's size.

    FeedSign (arXiv 2501.17610), one upload bit per direction. The size of scalars has no influence. f hostile devices
    flip a direction only if the honest majority is no larger than f; if honest devices agree, f < n/2 devices cannot. A
    scalar of 0 in a float reply is an abstention; in a 1-bit reply it counts as positive.
    """

    name = "sign-vote"

    def used_part(self, client: ClientScalars) -> ClientScalars:
        """Return only the signs."""
        return replace(client, projected_grads=np.sign(client.projected_grads))

    def combine(self, grads: Floats, faulty: int) -> Floats:
        """As `SharedRule.combine`."""
        return np.asarray(np.sign(np.sign(grads).sum(axis=0)))


_SHARED_RULES: dict[str, Callable[[float], SharedRule]] = {
    rule.name: rule for rule in (Median, TrimmedMean, Krum, MultiKrum, SignVote)
}


def aggregator_of(
    aggregation: Aggregation,
    *,
    shared: bool,
    weighting: Weighting,
    byzantine_share: float = 0.25,
    norm_bound: float = 0.0,
    local_steps: int = 1,
) -> Aggregator:
    """Return the rule of that name for a run's settings.

    Raises:
        ConfigError: the settings are incompatible, or a number is out of range.
    """
    if not 0 <= byzantine_share <= MOST_BYZANTINE:
        raise ConfigError(
            f"byzantine-share is {byzantine_share}, expected 0 … {MOST_BYZANTINE}: no rule resists a hostile majority"
        )
    if not (math.isfinite(norm_bound) and norm_bound >= 0):
        raise ConfigError(f"norm-bound is {norm_bound}, expected a positive number, or 0 for the round's median norm")
    if aggregation == "mean":
        return Mean(weighting, shared)
    if weighting != "uniform":
        raise ConfigError(
            f"aggregation is {aggregation!r}, which counts every device once, as how many examples it has is its own "
            f"claim, and weighting is {weighting!r}: set weighting=uniform"
        )
    if aggregation == "norm-clipping":
        return NormClipping(byzantine_share, norm_bound, shared)
    if not shared:
        raise ConfigError(
            f"aggregation is {aggregation!r}, but with independent directions no two devices' scalars can be compared: "
            "set directions=shared, or aggregation=norm-clipping, which bounds each device by itself"
        )
    if aggregation == "sign-vote" and local_steps > 1:
        raise ConfigError(
            f"aggregation is 'sign-vote' and local-steps is {local_steps}, expected 1: a device's own steps are not "
            "made of signs"
        )
    return _SHARED_RULES[aggregation](byzantine_share)


def krum_order(grads: Floats, faulty: int) -> NDArray[np.int64]:
    """Return indices of the vectors (n, d) from the best Krum score to the worst; ties go to the lower index.

    A score is the sum of squared distances to the n − f − 2 nearest others; n ≥ f + 3.
    """
    nearest = len(grads) - faulty - 2
    scores = np.empty(len(grads))
    for place, grad in enumerate(grads):
        distances = _sum_in_order(np.square(grads - grad))
        others = np.sort(np.delete(distances, place))
        scores[place] = _sum_in_order(others[None, :nearest])[0]
    return np.argsort(scores, kind="stable")


def _expect_devices(rule: Aggregator, clients: Sequence[ClientScalars], least: int) -> None:
    if len(clients) < max(least, 1):
        raise TooFewReplies(
            f"{len(clients)} valid replies, {rule.name} needs {max(least, 1)} for its byzantine-share: the round "
            f"stays empty; ask more devices, or lower byzantine-share (min-replies={rule.least_replies} says so early)"
        )


def _middle(values: Floats) -> Floats:
    """Return the median over the first axis."""
    ordered, half = np.sort(values, axis=0), len(values) // 2
    return np.asarray(ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def _sum_in_order(values: Floats) -> Floats:
    """Return the sums of rows, (r, c) → (r,), added from first to last column: `np.sum` does not fix the order."""
    return np.asarray(np.add.accumulate(values, axis=1)[:, -1])


def _norm(grads: NDArray[np.float32]) -> float:
    return math.sqrt(_sum_in_order(np.square(grads.astype(np.float64)).reshape(1, -1))[0])


def _clip(client: ClientScalars, norm: float, bound: float) -> ClientScalars:
    if norm <= bound:
        return client
    cut = client.projected_grads.astype(np.float64) * (bound / norm)
    return replace(client, projected_grads=cut.astype(np.float32))
