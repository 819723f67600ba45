"""Attack: one device sends garbage in one step of a secure sum, and the others are blamed, or the round is empty."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from secure_cohort import Cohort, keys_of, node_key, terms_of, vectors_of
from toy_fleet import TOY, toy_grids

from server.commands.privacy import verify
from server.rounds.federation import Federation
from zo_common.binary.durable import unseal
from zo_common.config.run import RunConfig
from zo_common.directions.seeds import shared_seed
from zo_common.errors import SecureAggregationError
from zo_common.privacy.charges import LOG_NAME, PrivacyLog
from zo_common.secure_sum.boxes import ENTRY_BYTES, seal, share_hashes
from zo_common.secure_sum.masks import new_private, public_of
from zo_common.secure_sum.messages import Advertisement, Consent, KeyList, RevealedShares, SealedShares
from zo_common.secure_sum.node_keys import peer_line
from zo_common.secure_sum.server import SecureServer
from zo_common.secure_sum.shamir import SHARE_BYTES

LIAR = 3
Alter = Callable[[bytes], bytes]


def _advertisement(data: bytes) -> bytes:
    return replace(Advertisement.decode(data), signature=os.urandom(70)).encode()


def _changed_keys(data: bytes, **keys: bytes) -> bytes:
    """Other public keys, signed as its own are."""
    changed = replace(Advertisement.decode(data), **keys)
    return replace(changed, signature=keys_of([LIAR])[0][LIAR].sign(changed.signed())).encode()


def _key_of_small_order(data: bytes) -> bytes:
    return _changed_keys(data, mask_key=bytes(32))


def _box_key_of_small_order(data: bytes) -> bytes:
    return _changed_keys(data, box_key=(1).to_bytes(32, "little"))


def _one_key_twice(data: bytes) -> bytes:
    return _changed_keys(data, mask_key=Advertisement.decode(data).box_key)


def _consent(data: bytes) -> bytes:
    return replace(Consent.decode(data), signature=os.urandom(70)).encode()


def _share(data: bytes) -> bytes:
    found = RevealedShares.decode(data)
    return replace(found, shares={owner: os.urandom(SHARE_BYTES - 1) + b"\0" for owner in found.shares}).encode()


def _others_share(data: bytes) -> bytes:
    found = RevealedShares.decode(data)
    return replace(found, shares=found.shares | {0: found.shares[1]}).encode()


def _cohort(step: str, alter: Alter, **terms: Any) -> Cohort:
    def tamper(name: str, client: int, data: bytes) -> bytes:
        return alter(data) if (name, client) == (step, LIAR) else data

    cohort = Cohort(terms_of(**terms), vectors_of(range(7), 4), signed=True, to_server=tamper)
    cohort.server = SecureServer(cohort.terms, keys_of(range(7))[1])
    return cohort


@pytest.mark.parametrize(
    ("step", "alter", "word"),
    [
        ("advertise", _advertisement, "did not sign its keys"),
        ("advertise", _key_of_small_order, "advertised a key that gives no shared secret"),
        ("advertise", _box_key_of_small_order, "advertised a key that gives no shared secret"),
        ("advertise", _one_key_twice, "advertised a key that comes twice"),
        ("consent", _consent, "did not sign the survivors"),
        ("reveal", _share, "revealed a share that device 0 did not make for it"),
        ("reveal", _others_share, "revealed a share that device 0 did not make for it"),
    ],
)
def test_the_round_goes_on_without_it(step: str, alter: Alter, word: str) -> None:
    cohort = _cohort(step, alter)
    assert (cohort.run() == cohort.plain()).all()
    assert list(cohort.refused) == [LIAR] and word in cohort.refused[LIAR] and f"device {LIAR}" in cohort.refused[LIAR]
    assert (LIAR in cohort.masked) == (step != "advertise")


def test_two_devices_that_share_a_key_stop_nothing() -> None:
    """Devices refuse a list in which a key comes twice: the second to send it is left out before it is sent."""
    keys: list[bytes] = []

    def tamper(name: str, client: int, data: bytes) -> bytes:
        if name != "advertise" or client not in (2, LIAR):
            return data
        keys.append(Advertisement.decode(data).box_key)
        return data if client == 2 else _changed_keys(data, box_key=keys[0])

    cohort = _cohort("", lambda data: data)
    cohort.to_server = tamper
    assert (cohort.run() == cohort.plain()).all()
    assert list(cohort.refused) == [LIAR] and "advertised a key that comes twice" in cohort.refused[LIAR]


def test_a_garbage_consent_that_a_server_passes_on_does_not_stop_devices() -> None:
    """One that knows no keys cannot verify it."""
    cohort = _cohort("consent", _consent)
    cohort.server = SecureServer(cohort.terms)
    assert (cohort.run() == cohort.plain()).all() and not cohort.refused


class TestSealed:
    """Shares that nobody can use make a sum impossible once it is masked: the device is named and left out."""

    def blamed(self, cohort: Cohort) -> dict[int, str]:
        """Who is named for a sum that comes to nothing, and for what; nobody is refused in a step before."""
        with pytest.raises(SecureAggregationError, match=f"device {LIAR} "):
            cohort.run()
        assert not cohort.refused
        return cohort.server.faulty

    def test_boxes_that_do_not_open(self) -> None:
        def alter(data: bytes) -> bytes:
            found = SealedShares.decode(data)
            return replace(found, boxes={c: os.urandom(ENTRY_BYTES) for c in found.boxes}).encode()

        faulty = self.blamed(_cohort("share", alter))

        assert list(faulty) == [LIAR] and "sealed shares that 6 devices cannot open" in faulty[LIAR]

    def test_shares_of_no_secret(self) -> None:
        cohort = _cohort("share", lambda data: data)

        def alter(data: bytes) -> bytes:
            found, device = SealedShares.decode(data), cohort.devices[LIAR]
            boxes = {}
            for other in found.boxes:
                pair = (os.urandom(SHARE_BYTES - 1) + b"\0", os.urandom(SHARE_BYTES - 1) + b"\0")
                key, session = device.memory.keys[other].box_key, found.session
                box = seal(device.memory.box_key, key, session, LIAR, other, pair)
                boxes[other] = box + share_hashes(session, LIAR, other, pair)
            return replace(found, boxes=boxes).encode()

        def tamper(name: str, client: int, data: bytes) -> bytes:
            return alter(data) if (name, client) == ("share", LIAR) else data

        cohort.to_server = tamper
        assert list(self.blamed(cohort)) == [LIAR]

    def test_another_self_mask_than_committed_to(self) -> None:
        faulty = self.blamed(
            _cohort("share", lambda data: replace(SealedShares.decode(data), commitment=bytes(32)).encode())
        )

        assert list(faulty) == [LIAR] and "shared another self mask than it committed to" in faulty[LIAR]

    def test_a_few_boxes_that_do_not_open_stop_nothing(self) -> None:
        def alter(data: bytes) -> bytes:
            found = SealedShares.decode(data)
            return replace(found, boxes=found.boxes | {0: os.urandom(ENTRY_BYTES)}).encode()

        cohort = _cohort("share", alter)
        assert (cohort.run() == cohort.plain()).all() and not cohort.refused and not cohort.server.faulty

    def test_all_of_them_are_named_at_once(self) -> None:
        def tamper(name: str, client: int, data: bytes) -> bytes:
            if name != "share" or client not in (1, LIAR):
                return data
            return replace(SealedShares.decode(data), commitment=bytes(32)).encode()

        cohort = _cohort("", lambda data: data)
        cohort.to_server = tamper
        with pytest.raises(SecureAggregationError, match=r"device 1 shared .*; device 3 shared .*"):
            cohort.run()
        assert set(cohort.server.faulty) == {1, LIAR}

    def test_who_drops_out_with_a_wrong_mask_key_is_named(self) -> None:
        """It is not in the sum, but others' masks for it are."""
        cohort = _cohort("advertise", lambda data: _changed_keys(data, mask_key=public_of(new_private())))
        cohort.to_device = lambda name, client, data: _own_keys(cohort, data) if client == LIAR else data
        cohort.drops = {LIAR: "mask"}
        faulty = self.blamed(cohort)
        assert "shared another mask key than it advertised" in faulty[LIAR]


def _own_keys(cohort: Cohort, data: bytes) -> bytes:
    """A key list in which the liar finds the keys that it really has."""
    if not data or data[3] != KeyList.KIND:
        return data
    found, own = KeyList.decode(data), public_of(cohort.devices[LIAR].memory.mask_key)
    keys = tuple(replace(key, mask_key=own) if key.client_id == LIAR else key for key in found.keys)
    return replace(found, keys=keys).encode()


class TestDispute:
    """Whoever says that boxes do not open may lie: a few words against one are no proof against an honest device."""

    def _cohort(self, clients: int, liars: set[int], **options: Any) -> Cohort:
        """Liars keep device 0's share back; nobody can see whether they can open its box."""

        def tamper(name: str, client: int, data: bytes) -> bytes:
            if name != "reveal" or client not in liars:
                return data
            found = RevealedShares.decode(data)
            kept = {owner: share for owner, share in found.shares.items() if owner}
            return replace(found, shares=kept).encode()

        cohort = Cohort(terms_of(), vectors_of(range(clients), 4), signed=True, to_server=tamper, **options)
        cohort.server = SecureServer(cohort.terms, keys_of(range(clients))[1])
        return cohort

    def test_of_three_devices_one_blames_nobody_alone(self) -> None:
        cohort = self._cohort(3, {LIAR - 1})
        with pytest.raises(SecureAggregationError, match="or they can and do not say so"):
            cohort.run()
        assert not cohort.server.faulty and set(cohort.server.disputed) == {0, LIAR - 1}

    def test_where_devices_drop_out_few_blame_nobody_alone(self) -> None:
        cohort = self._cohort(10, {2, LIAR}, drops={4: "mask", 5: "mask"})
        with pytest.raises(SecureAggregationError, match="or they can and do not say so"):
            cohort.run()
        assert not cohort.server.faulty and set(cohort.server.disputed) == {0, 2, LIAR}

    def test_fewer_than_a_third_stop_nothing_where_all_stay(self) -> None:
        cohort = self._cohort(10, {2, LIAR, 4})
        assert (cohort.run() == cohort.plain()).all() and not cohort.server.disputed


def test_the_round_is_repeated_without_it_along_other_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any
) -> None:
    """A federation of real clients with node keys; the deployment's list of keys is in the run's folder."""
    secure: dict[str, Any] = {"directions": "shared", "secure_aggregation": True, "weighting": "uniform"}
    config = RunConfig(
        **{**TOY, **secure, "num_server_rounds": 3, "round_timeout": 300.0, "output": str(tmp_path / "run")}
    )
    grid = toy_grids(monkeypatch, 5)(config)
    lines = "".join(peer_line(c, node_key(c)[1].decode()) for c in range(5))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "peers.keys").write_text(lines)
    for client in range(5):
        folder = tmp_path / str(client)
        folder.mkdir()
        (folder / "peers.keys").write_text(lines)
        (folder / "node.key").write_bytes(node_key(client)[0])
        grid[client].context.node_config["node-key"] = str(folder / "node.key")

    def spoil(server_round: int, data: bytes) -> bytes:
        if data[:2] != b"ZA":
            return data
        if data[3] == Consent.KIND and server_round == 1:
            return _consent(data)
        if data[3] == SealedShares.KIND and server_round == 2:
            return replace(SealedShares.decode(data), commitment=bytes(32)).encode()
        return data

    grid[LIAR].after = spoil
    federation = Federation(config, grid, observed.events)
    federation.run()
    # the first sum is opened without its signature; the second cannot be, and is made again without the device
    assert [(r.asked, r.answered) for r in observed.reports] == [(5, 5), (5, 4), (4, 4)]
    assert f"device {LIAR} did not sign the survivors" in observed.text
    assert f"device {LIAR} shared another self mask than it committed to" in observed.text
    assert not any(f"client {other}: " in observed.text for other in range(5) if other != LIAR)
    records = federation.ledger.ledger.records
    assert [len(record.contributions) for record in records] == [1, 1, 1]
    assert [record.contributions[0].seed for record in records] == [
        shared_seed(0, 1),
        shared_seed(0, 2, 1),
        shared_seed(0, 3),
    ]
    assert np.isfinite(records[1].contributions[0].coefficients).all()
    excluded = json.loads((tmp_path / "run" / "devices.json").read_text())["devices"][LIAR]
    assert (excluded["client_id"], excluded["standing"]) == (LIAR, "excluded")
    for client in set(range(5)) - {LIAR}:  # on each device every seed was masked for one set
        assert len(json.loads(_body(tmp_path / str(client) / "node.key.masked.seeds"))) == 4


def _body(path: Path) -> bytes:
    return unseal(path.read_bytes(), b"ZOMS", 1)


class TestRepeats:
    """How often one round is begun again, and with whom."""

    def _run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any, **more: Any) -> Any:
        secure: dict[str, Any] = {"directions": "shared", "secure_aggregation": True, "weighting": "uniform"}
        settings = {**TOY, **secure, "num_server_rounds": 1, "round_timeout": 300.0, "output": str(tmp_path / "run")}
        config = RunConfig(**{**settings, **more})
        grid = toy_grids(monkeypatch, 8)(config)
        return Federation(config, grid, observed.events), grid

    def _liars(self, grid: Any, clients: set[int]) -> None:
        """One more of them lies in each attempt."""
        attempts: list[bytes] = []

        def spoil(client: int, data: bytes) -> bytes:
            if data[:2] != b"ZA" or data[3] != SealedShares.KIND:
                return data
            if data[4:20] not in attempts:
                attempts.append(data[4:20])
            turn = sorted(clients)[min(len(attempts), len(clients)) - 1]
            return replace(SealedShares.decode(data), commitment=bytes(32)).encode() if client == turn else data

        for client in clients:
            grid[client].after = lambda _, data, client=client: spoil(client, data)

    @pytest.mark.parametrize(("liars", "answered"), [({1}, 7), ({1, 2}, 6), ({1, 2, 3}, 0)])
    def test_at_most_twice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any, liars: set[int], answered: int
    ) -> None:
        federation, grid = self._run(tmp_path, monkeypatch, observed)
        self._liars(grid, liars)
        federation.run()
        assert [(r.asked, r.answered) for r in observed.reports] == [(8, answered)]
        assert {s.client_id for s in federation.statuses if s.excluded} == liars

    def test_not_with_fewer_than_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any) -> None:
        federation, grid = self._run(tmp_path, monkeypatch, observed, min_replies=8)
        self._liars(grid, {1})
        federation.run()
        assert [(r.asked, r.answered) for r in observed.reports] == [(8, 0)]
        assert json.loads((tmp_path / "run" / "attempts.json").read_text()) == [1, 0]

    def test_each_attempt_is_charged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any) -> None:
        private = {"privacy": "device", "noise_multiplier": 5.0, "clip_norm": 5.0, "target_delta": 1e-3}
        federation, grid = self._run(tmp_path, monkeypatch, observed, **private)
        self._liars(grid, {1})
        federation.run()
        spent = PrivacyLog.read(tmp_path / "run" / LOG_NAME).spent
        assert {client: sum(charged.values()) for client, charged in spent.items()} == {1: 1} | dict.fromkeys(
            set(range(8)) - {1}, 2
        )
        verify(tmp_path / "run")

    def test_not_beyond_the_budget(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observed: Any) -> None:
        private = {"privacy": "device", "clip_norm": 5.0, "target_delta": 1e-3}  # noise for one round
        federation, grid = self._run(tmp_path, monkeypatch, observed, **private)
        self._liars(grid, {1})
        federation.run()
        assert [(r.asked, r.answered) for r in observed.reports] == [(8, 0)]
        assert federation.privacy is not None and federation.privacy.epsilon <= 8.0
