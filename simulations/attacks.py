"""Attacks of simulated hostile devices: pure functions of the scalars that honest devices would have sent.

The device's own code does not contain them: `hostile_app` changes a simulated device's answer from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.app import CONTENT, make_client_app
from client.device_identity import identity_of
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import fold_in
from zo_common.errors import CodecError, ConfigError
from zo_common.wire.plan import Plan, Status, decode_plan, decode_reply, encode_reply

Attack = Literal["none", "sign-flip", "large", "random", "colluding", "label-flip", "free-rider"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
ATTACK_STREAM = 1 << 43
LARGE = 100.0
Scalars = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Seen:
    """The knowledge of a hostile device when it answers.

    Attributes:
        own: its honest scalars, float32 (K, q).
        band: the honest scalars of all hostile devices of the round, its own included, in order of their ids.
        devices: number of devices that answer in the round, hostile or not.
        last: coefficients of the round before with shared directions, float32 (K, q); None if there are none.
        rng: the device's own random generator.
    """

    own: Scalars
    band: Sequence[Scalars] = ()
    devices: int = 1
    last: Scalars | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


def honest(seen: Seen) -> Scalars:
    """Return the honest scalars."""
    return seen.own


def sign_flip(seen: Seen) -> Scalars:
    """Return the negated scalars: gradient ascent with an honest norm, which a norm check cannot detect."""
    return np.asarray(-seen.own)


def large(seen: Seen) -> Scalars:
    """Return minus a hundred times the scalars: in a mean, one device outweighs a hundred honest ones."""
    return np.asarray(-np.float32(LARGE) * seen.own)


def random(seen: Seen) -> Scalars:
    """Return Gaussian noise with the standard deviation of the honest scalars."""
    size = float(np.sqrt(np.mean(np.square(seen.own, dtype=np.float64))))
    return (size * seen.rng.standard_normal(seen.own.shape)).astype(np.float32)


def colluding(seen: Seen) -> Scalars:
    """Send one vector of all, as far against the mean as the honest spread hides: "a little is enough".

    Baruch et al. 2019 (arXiv 1902.06156): mean − z · deviation · sign(mean) of each coordinate, as the hostile devices
    estimate them from their own honest scalars, with z such that s = ⌊n/2⌋ + 1 − f honest devices lie farther out: z is
    the normal quantile of (n − f − s) / (n − f). A single hostile device takes the spread over its own coordinates.
    """
    band = np.stack([np.asarray(each, np.float64) for each in (seen.band or (seen.own,))])
    mean = band.mean(axis=0)
    deviation = band.std(axis=0, ddof=1) if len(band) > 1 else np.full_like(mean, seen.own.std())
    left = seen.devices - len(band)
    supporters = seen.devices // 2 + 1 - len(band)
    share = (left - supporters) / left if left > 0 else 0.5
    quantile = NormalDist().inv_cdf(min(max(share, 0.5), 0.999))
    return np.asarray(mean - quantile * deviation * np.sign(mean), np.float32)


def free_rider(seen: Seen) -> Scalars:
    """Return the previous round's update, scaled to the size of honest scalars: needs no forward pass."""
    if seen.last is None or seen.last.shape != seen.own.shape:
        return np.zeros_like(seen.own)
    length = float(np.linalg.norm(seen.last))
    return (-seen.last * (float(np.linalg.norm(seen.own)) / length if length else 0.0)).astype(np.float32)


_OF_SCALARS: dict[Attack, Callable[[Seen], Scalars]] = {
    "none": honest,
    "sign-flip": sign_flip,
    "large": large,
    "random": random,
    "colluding": colluding,
    "label-flip": honest,  # its scalars are honest, its recordings are not
    "free-rider": free_rider,
}


def attack_of(name: Attack) -> Callable[[Seen], Scalars]:
    """Return the attack of that name on scalars; label-flip acts on recordings instead (`flip_labels`).

    Raises:
        ConfigError: there is no such attack.
    """
    if name not in _OF_SCALARS:
        raise ConfigError(f"attack is {name!r}, expected one of {', '.join(ATTACKS)}")
    return _OF_SCALARS[name]


def flipped(texts: Sequence[str]) -> list[str]:
    """Assign each text to the next recording with a different text: wrong, but plausible for the speaker.

    If all texts are equal, their words are reversed.
    """
    if len(set(texts)) < 2:
        return [" ".join(reversed(text.split())) for text in texts]
    found = []
    for identity, text in enumerate(texts):
        later = (texts[(identity + step) % len(texts)] for step in range(1, len(texts)))
        found.append(next(other for other in later if other != text))
    return found


def flip_labels(examples: Sequence[Any]) -> tuple[Any, ...]:
    """Checked examples (dataclasses with `features`, `seconds`, `text`) with the sound of others: as `flipped`."""
    of_text = {example.text: example for example in examples}
    wrong = flipped([example.text for example in examples])
    if len(of_text) < 2:
        raise ConfigError("label-flip needs recordings of at least two different texts on a device: give it more")
    pairs = zip(examples, wrong, strict=True)
    return tuple(replace(of_text[text], features=e.features, seconds=e.seconds, where=e.where) for e, text in pairs)


def last_update(plan: Plan) -> Scalars | None:
    """Return the coefficients of the last round in a plan, if its directions were shared."""
    if not plan.records or len(plan.records[-1].contributions) != 1:
        return None
    return plan.records[-1].contributions[0].coefficients


def chance(plan: Plan) -> np.random.Generator:
    """Return a hostile device's random generator for a round; it differs by device even with shared directions."""
    return np.random.default_rng(fold_in(plan.seed, ATTACK_STREAM, plan.client_id))


def hostile_app(config: RunConfig, attack: Attack, hostile: Collection[int]) -> ClientApp:
    """Return a ClientApp for Flower's simulation in which the devices `hostile` (client ids) change what they measured.

    Raises:
        ConfigError: the attack needs more than one message to one device.
    """
    if attack in ("colluding", "label-flip"):
        raise ConfigError(
            f"attack is {attack!r}, which needs what other devices measure or other recordings: run it with "
            "python -m benchmarks.hostile.attackers"
        )
    change, inner, app = attack_of(attack), make_client_app(config), ClientApp()

    def relay(message: Message, context: Context) -> Message:
        return inner(message, context)

    def train(message: Message, context: Context) -> Message:
        plan = decode_plan(message.content.config_records[CONTENT]["plan"])  # type: ignore[arg-type]
        answer = inner(message, context)
        payload = answer.content.config_records[CONTENT].get("reply")
        if identity_of(context.node_config, context.node_id).client_id in hostile and isinstance(payload, bytes):
            answer.content = RecordDict({CONTENT: ConfigRecord({"reply": _changed(payload, plan, change)})})
        return answer

    app.query()(relay)
    app.query("sync")(relay)
    app.query("rebuild")(relay)
    app.query("calibrate")(relay)
    app.evaluate()(relay)
    app.train()(train)
    return app


def _changed(payload: bytes, plan: Plan, change: Callable[[Seen], Scalars]) -> bytes:
    try:
        reply = decode_reply(payload)
    except CodecError:
        return payload
    if reply.status is not Status.OK:
        return payload
    seen = Seen(reply.projected_grads, last=last_update(plan), rng=chance(plan))
    return encode_reply(replace(reply, projected_grads=change(seen)))
