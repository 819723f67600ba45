"""Readers of what privacy adds: secure sums' messages, a whole sum with one damaged message, the log of the budget."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_target import Target
from secure_cohort import Cohort, terms_of, vectors_of

from zo_common.errors import CodecError, LedgerError, SecureAggregationError
from zo_common.privacy import charges as privacy_log
from zo_common.privacy.charges import Charge, PrivacyLog
from zo_common.secure_sum.messages import (
    Advertisement,
    Consent,
    Invitation,
    KeyList,
    MaskedInput,
    RevealedShares,
    RevealRequest,
    SealedShares,
    Sharers,
    Survivors,
)
from zo_common.secure_sum.state import dump_device, load_device
from zo_common.wire.masked_reply import decode_masked, encode_masked
from zo_common.wire.plan import Reply, Status

KINDS: tuple[Any, ...] = (
    *(Invitation, Advertisement, KeyList, SealedShares, Sharers, MaskedInput),
    *(Survivors, Consent, RevealRequest, RevealedShares),
)
TO_DEVICE = {KeyList.KIND: "share", Sharers.KIND: "mask", Survivors.KIND: "consent", RevealRequest.KIND: "reveal"}
TO_SERVER = {
    Advertisement.KIND: "advertise", SealedShares.KIND: "share", MaskedInput.KIND: "mask",
    Consent.KIND: "consent", RevealedShares.KIND: "reveal",
}  # fmt: skip
REFUSED = (CodecError, SecureAggregationError)


def private_targets() -> dict[str, Target]:
    """All of them by name."""
    return {**_sums(), "privacy.jsonl": _log()}


def _recorded() -> dict[str, tuple[bytes, ...]]:
    """Messages of a good sum, as device 0 sent and got them, and what it kept in between."""
    sent: list[bytes] = []
    got: list[bytes] = []
    kept: list[bytes] = []

    def keep(into: list[bytes]) -> Any:
        def word(step: str, client: int, data: bytes) -> bytes:
            if client == 0 and data:
                into.append(data)
            return data

        return word

    cohort = Cohort(terms_of(), vectors_of(range(3), 4), to_server=keep(sent), to_device=keep(got))
    got.append(cohort.server.invitation())
    cohort.run()
    kept.append(dump_device(cohort.devices[0]))
    return {"sent": tuple(sent), "got": tuple(got), "kept": tuple(kept)}


def _sums() -> dict[str, Target]:
    found = _recorded()
    messages = (*found["sent"], *found["got"])
    masked = next(data for data in messages if data[3] == MaskedInput.KIND)
    bare = Reply(Status.OK, 1, 0, 3, 2**64 - 1, 0)

    def message(data: bytes) -> None:
        kind = next((kind for kind in KINDS if len(data) > 3 and data[3] == kind.KIND), Invitation)
        again = kind.decode(data).encode()
        if again != data:
            raise AssertionError("a message of a secure sum has two encodings")

    def whole(data: bytes) -> None:
        """One damaged message to or from one device of three: the others' sum, or a refusal; and never a wrong sum."""
        kind = data[3] if len(data) > 3 else 0
        step = {**TO_DEVICE, **TO_SERVER}.get(kind, "advertise")

        def alter(name: str, client: int, good: bytes) -> bytes:
            return data if client == 0 and name == step else good

        way = {"to_device" if kind in TO_DEVICE else "to_server": alter}
        cohort = Cohort(terms_of(threshold=0.5), vectors_of(range(3), 4), **way)
        try:
            total = cohort.run()
        finally:
            unexpected = [word for word in cohort.refused.values() if not word.startswith(tuple(NAMES))]
            if unexpected:
                raise AssertionError(unexpected[0])
        # one that is told another list of sharers adds other masks than the rest
        if data != masked and kind not in (MaskedInput.KIND, Sharers.KIND) and (total != cohort.plain()).any():
            raise AssertionError("a secure sum is not the sum of those it counts")

    return {
        "secure-message": Target(message, messages, REFUSED),
        "secure-sum": Target(whole, messages, REFUSED),
        "secure-state": Target(load_device, found["kept"], REFUSED),
        "secure-reply": Target(decode_masked, (encode_masked(bare, masked),), (CodecError,)),
    }


NAMES = tuple(error.__name__ for error in REFUSED)


def _log() -> Target:
    path = Path(tempfile.mkdtemp()) / "privacy.jsonl"
    charge = Charge(1, "ab" * 32, "example", 1.5, 4, 2, {12: [3, 4], 9: [5]}, 50.0, 1e-5)

    def sealed(body: bytes) -> bytes:
        try:
            text = privacy_log._text(privacy_log._charge(json.loads(body)))
        except Exception:  # nobody writes this: it goes in as it is
            return body + b"\n"
        return (text[:-1] + f',"chain":"{privacy_log._link("", text)}"}}\n').encode()

    def use(data: bytes) -> None:
        path.write_bytes(data)
        log = PrivacyLog.read(path)
        log.check_against([bytes.fromhex("ab" * 32)] * 2, {1: [3]})

    text = json.dumps(asdict(charge) | {"devices": {"12": [3, 4], "9": [5]}}).encode()
    return Target(use, (text,), (LedgerError,), sealed, is_json=True)
