"""A device between two messages: Flower starts a process for each, so what it must remember travels as bytes.

The bytes hold private keys. They stay on the device, and only for the length of a round.
"""

from __future__ import annotations

import struct

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError
from zo_common.secure_sum.device import Phase, SecureDevice
from zo_common.secure_sum.graph import Graph
from zo_common.secure_sum.messages import KeyList
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys
from zo_common.secure_sum.terms import Terms

_MAGIC, _VERSION = b"ZV", 1


def dump_device(device: SecureDevice) -> bytes:
    """All that `load_device` needs, the node keys left out."""
    keys = tuple(device._keys[client] for client in sorted(device._keys))
    listed = KeyList(device.terms.session, device._graph.cohort, keys).encode()
    fields = (
        device._box_key, device._mask_key, device._seed, *device._own, listed, device._sharers, device._survivors,
    )  # fmt: skip
    head = struct.pack("<2sBBQIQ", _MAGIC, _VERSION, device.phase, device.client_id, device._least, device._total)
    return head + device.terms.encode() + b"".join(struct.pack("<I", len(field)) + field for field in fields)


def load_device(data: bytes, signer: NodeSigner | None = None, peers: PeerKeys | None = None) -> SecureDevice:
    """Inverse of `dump_device`; signatures were checked when the keys came and are not checked again.

    Raises:
        CodecError: not such bytes.
    """
    reader = Reader(data, "a secure sum's state")
    magic, version, phase, client_id, least, total = reader.take("2sBBQIQ")
    if (magic, version) != (_MAGIC, _VERSION) or phase not in set(Phase):
        raise CodecError("a secure sum's state is of another version: the device takes part in the next round")
    device = SecureDevice(Terms.take(reader), client_id, signer, peers, least=least)
    box, mask, seed, of_key, of_seed, listed, sharers, survivors = (
        reader.raw(reader.take("I")[0]) for _ in range(8)
    )  # fmt: skip
    reader.finish()
    keys = KeyList.decode(listed)
    device.phase = Phase(phase)
    device._box_key, device._mask_key, device._seed, device._own = box, mask, seed, (of_key, of_seed)
    device._graph, device._keys = Graph(device.terms, keys.cohort), {key.client_id: key for key in keys.keys}
    device._sharers, device._survivors, device._total = sharers, survivors, total
    return device
