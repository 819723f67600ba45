"""What a device refuses, whatever the server says: it then is a drop-out, never a leak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from secure_cohort import Cohort, keys_of, node_key, terms_of, vectors_of

from zo_common.errors import CodecError, ConfigError, SecureAggregationError
from zo_common.secure_sum.boxes import BOX_BYTES, unseal
from zo_common.secure_sum.device import Phase, SecureDevice
from zo_common.secure_sum.graph import Graph
from zo_common.secure_sum.masks import new_private, public_of
from zo_common.secure_sum.messages import Advertisement, KeyList, RevealRequest, Sharers, Survivors
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys, peer_line
from zo_common.secure_sum.state import dump_device, load_device

TERMS = terms_of()
ZEROS = np.zeros(TERMS.length, np.int64)


def _listed(count: int = 5, signed: bool = False) -> tuple[dict[int, SecureDevice], KeyList]:
    signers, peers = keys_of(range(count)) if signed else ({}, None)
    devices = {client: SecureDevice(TERMS, client, signers.get(client), peers) for client in range(count)}
    keys = tuple(device.advertise() for device in devices.values())
    return devices, KeyList(TERMS.session, tuple(range(count)), keys)


def _consented(survivors: range = range(5), signed: bool = False) -> tuple[dict[int, SecureDevice], dict[int, bytes]]:
    """Devices that know who survived, with the boxes sealed for device 0."""
    devices, keys = _listed(signed=signed)
    boxes = {client: device.share(keys).boxes.get(0, b"") for client, device in devices.items()}
    everyone = Graph(TERMS, keys.cohort)
    for client in survivors:
        devices[client].mask(Sharers(TERMS.session, everyone.bitmap(range(5))), ZEROS)
    return devices, {client: box for client, box in boxes.items() if client}


def _bitmap(*members: int) -> bytes:
    return Graph(TERMS, tuple(range(5))).bitmap(members)


class TestKeyList:
    def test_too_few(self) -> None:
        devices, keys = _listed(2)
        with pytest.raises(SecureAggregationError, match="2 devices, expected at least 3"):
            devices[0].share(keys)
        device = SecureDevice(TERMS, 0, least=6)
        own = device.advertise()
        _, keys = _listed()
        with pytest.raises(SecureAggregationError, match="5 devices, expected at least 6"):
            device.share(replace(keys, keys=(own, *keys.keys[1:])))

    def test_without_this_device(self) -> None:
        devices, keys = _listed()
        with pytest.raises(SecureAggregationError, match="leaves this device out"):
            devices[0].share(replace(keys, cohort=keys.cohort[1:], keys=keys.keys[1:]))

    def test_other_own_keys(self) -> None:
        devices, keys = _listed()
        swapped = replace(keys.keys[0], mask_key=public_of(new_private()))
        with pytest.raises(SecureAggregationError, match="other keys for this device"):
            devices[0].share(replace(keys, keys=(swapped, *keys.keys[1:])))

    @pytest.mark.parametrize("of", [0, 2])
    def test_one_key_twice(self, of: int) -> None:
        devices, keys = _listed()
        copy = replace(keys.keys[of], client_id=1)
        with pytest.raises(SecureAggregationError, match="one key comes twice"):
            devices[0].share(replace(keys, keys=(keys.keys[0], copy, *keys.keys[2:])))

    def test_keys_of_others_than_the_neighbours(self) -> None:
        devices, keys = _listed()
        with pytest.raises(SecureAggregationError, match="other devices than its neighbours"):
            devices[0].share(replace(keys, keys=keys.keys[:3]))
        devices, keys = _listed()
        with pytest.raises(SecureAggregationError, match="other devices than its neighbours"):
            devices[0].share(replace(keys, cohort=(0, 1, 2)))

    def test_of_another_session(self) -> None:
        devices, keys = _listed()
        with pytest.raises(SecureAggregationError, match="another session"):
            devices[0].share(replace(keys, session=bytes(16)))

    def test_swapped_keys_are_noticed_by_their_signatures(self) -> None:
        devices, keys = _listed(signed=True)
        swapped = replace(keys.keys[3], box_key=public_of(new_private()), mask_key=public_of(new_private()))
        with pytest.raises(SecureAggregationError, match="keys of device 3 are not signed by its node key"):
            devices[0].share(replace(keys, keys=(*keys.keys[:3], swapped, keys.keys[4])))
        # signed anew by a key that is not the device's
        forged = replace(swapped, signature=NodeSigner(node_key(99)[0]).sign(swapped.signed()))
        with pytest.raises(SecureAggregationError, match="keys of device 3"):
            devices[1].share(replace(keys, keys=(*keys.keys[:3], forged, keys.keys[4])))
        # without a signature at all
        with pytest.raises(SecureAggregationError, match="keys of device 3"):
            devices[2].share(replace(keys, keys=(*keys.keys[:3], replace(swapped, signature=b""), keys.keys[4])))

    def test_an_advertisement_of_an_earlier_round_is_noticed(self) -> None:
        devices, keys = _listed(signed=True)
        signers, peers = keys_of(range(5))
        earlier = SecureDevice(terms_of(server_round=2), 3, signers[3], peers).advertise()
        replayed = replace(earlier, session=TERMS.session)
        with pytest.raises(SecureAggregationError, match="keys of device 3"):
            devices[0].share(replace(keys, keys=(*keys.keys[:3], replayed, keys.keys[4])))

    def test_a_device_that_is_not_enrolled(self) -> None:
        signers, _ = keys_of(range(5))
        _, peers = keys_of(range(4))
        device = SecureDevice(TERMS, 0, signers[0], peers)
        own = device.advertise()
        _, keys = _listed(signed=True)
        with pytest.raises(SecureAggregationError, match="device 4 is not in peer-keys"):
            device.share(replace(keys, keys=(own, *keys.keys[1:])))

    def test_without_peer_keys_the_server_is_trusted_not_to_swap(self) -> None:
        devices, keys = _listed()
        private = new_private()
        swapped = replace(keys.keys[3], box_key=public_of(private), mask_key=public_of(new_private()))
        shared = devices[0].share(replace(keys, keys=(*keys.keys[:3], swapped, keys.keys[4])))
        # whoever swapped them reads the shares that were meant for device 3
        assert all(unseal(private, keys.keys[0].box_key, keys.session, 0, 3, shared.boxes[3][:BOX_BYTES]))


class TestOrder:
    def test_a_round_that_is_over_is_not_played_again(self) -> None:
        with pytest.raises(SecureAggregationError, match="round 1 was proposed after round 1"):
            SecureDevice(TERMS, 0, last_round=1)
        SecureDevice(terms_of(server_round=2), 0, last_round=1)

    def test_each_step_once_and_in_order(self) -> None:
        devices, keys = _listed()
        sharers = Sharers(TERMS.session, _bitmap(0, 1, 2, 3, 4))
        with pytest.raises(SecureAggregationError, match="MASKED was asked for in phase ADVERTISED"):
            devices[0].mask(sharers, ZEROS)
        with pytest.raises(SecureAggregationError, match="in phase ENDED"):  # a refusal ends it
            devices[0].share(keys)
        devices[1].share(keys)
        with pytest.raises(SecureAggregationError, match="SHARED was asked for in phase SHARED"):
            devices[1].share(keys)
        devices[2].share(keys)
        devices[2].mask(sharers, ZEROS)
        with pytest.raises(SecureAggregationError, match="MASKED was asked for in phase MASKED"):
            devices[2].mask(sharers, ZEROS + 1)

    def test_the_state_survives_between_any_two_steps_and_its_phase_with_it(self) -> None:
        device = SecureDevice(TERMS, 3)
        again = load_device(dump_device(device))
        assert again.phase is Phase.JOINED
        again.advertise()
        with pytest.raises(SecureAggregationError):
            load_device(dump_device(again)).advertise()

    def test_damaged_state_is_refused(self) -> None:
        data = dump_device(SecureDevice(TERMS, 3))
        for bad in (b"", data[:-1], data + b"\0", b"ZV\1" + data[3:], data[:3] + b"\x09" + data[4:]):
            with pytest.raises(CodecError):
                load_device(bad)


class TestSurvivors:
    def test_both_masks_of_one_device_are_never_asked_for(self) -> None:
        """The survivors hold once told: a second set, in which device 3 has dropped out, is refused."""
        devices, boxes = _consented()
        device = devices[0]
        device.consent(Survivors(TERMS.session, _bitmap(0, 1, 2, 3, 4)))
        with pytest.raises(SecureAggregationError, match="CONSENTED was asked for in phase CONSENTED"):
            device.consent(Survivors(TERMS.session, _bitmap(0, 1, 2, 4)))
        with pytest.raises(SecureAggregationError, match="in phase ENDED"):
            device.reveal(RevealRequest(TERMS.session, {}, boxes))

    def test_shares_are_revealed_once_and_of_one_kind(self) -> None:
        devices, boxes = _consented(range(4))
        device = devices[0]
        device.consent(Survivors(TERMS.session, _bitmap(0, 1, 2, 3)))
        found = device.reveal(RevealRequest(TERMS.session, {}, boxes))
        assert set(found.shares) == {0, 1, 2, 3, 4}
        with pytest.raises(SecureAggregationError, match="in phase ENDED"):
            device.reveal(RevealRequest(TERMS.session, {}, boxes))

    def test_fewer_than_the_threshold(self) -> None:
        devices, _ = _consented()
        with pytest.raises(SecureAggregationError, match="3 of 5 devices survived, expected at least 4"):
            devices[0].consent(Survivors(TERMS.session, _bitmap(0, 1, 2)))
        devices, keys = _listed()
        devices[0].share(keys)
        with pytest.raises(SecureAggregationError, match="3 of 5 devices sent shares"):
            devices[0].mask(Sharers(TERMS.session, _bitmap(0, 1, 2)), ZEROS)

    def test_a_set_without_this_device_or_with_one_that_shared_nothing(self) -> None:
        devices, _ = _consented()
        with pytest.raises(SecureAggregationError, match="not listed among those that survived"):
            devices[0].consent(Survivors(TERMS.session, _bitmap(1, 2, 3, 4)))
        devices, keys = _listed()
        devices[0].share(keys)
        devices[0].mask(Sharers(TERMS.session, _bitmap(0, 1, 2, 3)), ZEROS)
        with pytest.raises(SecureAggregationError, match="had sent no shares"):
            devices[0].consent(Survivors(TERMS.session, _bitmap(0, 1, 2, 3, 4)))

    def test_a_set_that_does_not_fit_the_cohort(self) -> None:
        for bad in (b"", b"\x1f\0", b"\x3f"):
            devices, _ = _consented()
            with pytest.raises(SecureAggregationError, match="do not fit a cohort of 5"):
                devices[0].consent(Survivors(TERMS.session, bad))

    def test_boxes_missing_or_of_strangers(self) -> None:
        for change in ("missing", "stranger"):
            devices, boxes = _consented()
            devices[0].consent(Survivors(TERMS.session, _bitmap(0, 1, 2, 3, 4)))
            if change == "missing":
                del boxes[3]
            else:
                boxes[77] = boxes[3]
            with pytest.raises(SecureAggregationError, match="boxes of"):
                devices[0].reveal(RevealRequest(TERMS.session, {}, boxes))

    @pytest.mark.parametrize("change", ["altered", "swapped", "hashes"])
    def test_of_boxes_that_do_not_hold_what_they_should_no_share_is_revealed(self, change: str) -> None:
        devices, boxes = _consented()
        devices[0].consent(Survivors(TERMS.session, _bitmap(0, 1, 2, 3, 4)))
        if change == "altered":
            boxes[3] = bytes(len(boxes[3]))
        elif change == "hashes":
            boxes[3] = boxes[3][:BOX_BYTES] + bytes(32)
        else:
            boxes[3], boxes[4] = boxes[4], boxes[3]
        found = devices[0].reveal(RevealRequest(TERMS.session, {}, boxes))
        assert set(found.shares) == ({0, 1, 2} if change == "swapped" else {0, 1, 2, 4})


class TestConsistency:
    """A server that tells devices of different survivors could unmask a smaller sum than the threshold's."""

    def test_different_survivors_are_noticed(self) -> None:
        told = {0: (0, 1, 2, 3), 1: (0, 1, 2, 3), 2: (0, 1, 2, 4), 3: (0, 1, 2, 3), 4: (0, 1, 2, 4)}

        def lie(step: str, client: int, data: bytes) -> bytes:
            return Survivors(TERMS.session, _bitmap(*told[client], client)).encode() if step == "consent" else data

        cohort = Cohort(TERMS, vectors_of(range(5), TERMS.length), signed=True, to_device=lie)
        with pytest.raises(SecureAggregationError):
            cohort.run()
        assert len(cohort.refused) == 5
        assert all("neighbours signed the same survivors, expected" in word for word in cohort.refused.values())

    def test_different_weights_are_noticed(self) -> None:
        def lie(step: str, client: int, data: bytes) -> bytes:
            told = (9, 8, 7, 6, 5) if client == 0 else (9, 9, 9, 9, 9)
            return replace(Sharers.decode(data), weights=told).encode() if step == "mask" else data

        terms = terms_of(weighted=True)
        cohort = Cohort(terms, vectors_of(range(5), 4), signed=True, to_device=lie)
        total = cohort.run()  # four agree, and open a sum in which the masks with device 0 do not cancel
        assert "1 neighbours signed the same survivors, expected at least 4" in cohort.refused[0]
        others = sum(cohort.vectors[client] for client in range(1, 5))
        assert not ((total == cohort.plain()) | (total - others == cohort.vectors[0])).any()

    def test_one_that_has_trained_at_another_state_is_in_no_sum(self) -> None:
        """And of those with its state, none can be told from the sum."""
        cohort = Cohort(TERMS, vectors_of(range(5), TERMS.length), signed=True, checksums={0: 9})
        assert (cohort.run() != cohort.plain()).all() and list(cohort.refused) == [0]

    def test_consents_held_back_are_too_few(self) -> None:
        def hold_back(step: str, client: int, data: bytes) -> bytes:
            if step != "reveal":
                return data
            request = RevealRequest.decode(data)
            return replace(request, signatures=dict(list(request.signatures.items())[:2])).encode()

        cohort = Cohort(TERMS, vectors_of(range(5), TERMS.length), signed=True, to_device=hold_back)
        with pytest.raises(SecureAggregationError):
            cohort.run()
        assert all("3 neighbours signed the same survivors" in word for word in cohort.refused.values())

    def test_an_honest_server_passes_with_drop_outs_at_every_step(self) -> None:
        drops = {0: "share", 1: "mask", 2: "consent", 3: "reveal"}
        cohort = Cohort(terms_of(threshold=2 / 3), vectors_of(range(14), TERMS.length), drops, signed=True)
        assert (cohort.run() == cohort.plain()).all() and not cohort.refused


class TestNodeKeys:
    def test_a_file_of_peers(self) -> None:
        text = "# devices\n\n" + "".join(peer_line(c, node_key(c)[1].decode() + f" device-{c}") for c in (3, 7))
        peers = PeerKeys.parse(text)
        signature = NodeSigner(node_key(3)[0]).sign(b"word")
        assert 3 in peers and 4 not in peers
        assert peers.holds(3, b"word", signature)
        assert not (peers.holds(7, b"word", signature) or peers.holds(4, b"word", signature))
        assert not (
            peers.holds(3, b"ward", signature) or peers.holds(3, b"word", b"") or peers.holds(3, b"", bytes(200))
        )

    @pytest.mark.parametrize("line", ["3", "x ecdsa-sha2-nistp256 AAAA", "3 ssh-ed25519 AAAA", "² a b"])
    def test_a_line_of_another_form(self, line: str) -> None:
        with pytest.raises(ConfigError, match="peer-keys"):
            PeerKeys.parse(line)

    def test_one_device_twice(self) -> None:
        line = peer_line(3, node_key(3)[1].decode())
        with pytest.raises(ConfigError, match="line 2"):
            PeerKeys.parse(line + line)

    def test_a_private_key_that_is_none(self) -> None:
        for bad in (b"", b"nonsense", node_key(3)[1]):
            with pytest.raises(ConfigError, match="node-key"):
                NodeSigner(bad)

    def test_peers_need_a_key_of_ones_own(self) -> None:
        with pytest.raises(SecureAggregationError, match="without node-key"):
            SecureDevice(TERMS, 0, None, keys_of(range(2))[1])


class TestGraph:
    def test_all_with_all(self) -> None:
        graph = Graph(TERMS, (1, 5, 9))
        assert graph.neighbours(5) == (1, 9) and graph.closed(5) == (1, 5, 9)

    def test_regular_and_mutual(self) -> None:
        ids = tuple(range(0, 300, 3))
        graph = Graph(terms_of(neighbours=10), ids)
        near = {client: set(graph.neighbours(client)) for client in ids}
        assert all(len(others) == 10 and client not in others for client, others in near.items())
        assert all(client in near[other] for client, others in near.items() for other in others)
        assert near != {c: set(Graph(terms_of(neighbours=10, server_round=2), ids).neighbours(c)) for c in ids}

    def test_a_small_cohort_is_complete(self) -> None:
        for count in range(3, 13):
            ids = tuple(range(count))
            degree = {len(Graph(terms_of(neighbours=10), ids).neighbours(client)) for client in ids}
            assert degree == {min(10, count - 1)}

    def test_sets_as_bits(self) -> None:
        graph = Graph(TERMS, tuple(range(10, 30)))
        assert graph.bitmap([]) == bytes(3)
        assert graph.bitmap([10, 18]) == b"\x01\x01\0"
        assert graph.members(graph.bitmap({11, 29})) == {11, 29}
        for bad in (bytes(2), bytes(4), b"\0\0\x10"):
            with pytest.raises(CodecError):
                graph.members(bad)


@pytest.mark.parametrize(("threshold", "neighbours"), [(0.49, 0), (1.0, 0), (float("nan"), 0), (0.6, 3), (0.6, 2)])
def test_a_policy_that_protects_nobody(threshold: float, neighbours: int) -> None:
    with pytest.raises(ConfigError, match="secure-"):
        terms_of(threshold=threshold, neighbours=neighbours)


def test_an_advertisement_binds_session_id_and_both_keys() -> None:
    one = Advertisement(TERMS.session, 1, bytes(32), bytes(32))
    others = [replace(one, session=bytes(16)), replace(one, client_id=2), replace(one, box_key=b"1" * 32)]
    others.append(replace(one, mask_key=b"1" * 32))
    assert len({found.signed() for found in [one, *others]}) == 5
