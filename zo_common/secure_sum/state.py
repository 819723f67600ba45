"""A device's state between two messages, as bytes: Flower starts a process for each message.

The bytes hold private keys. They stay on the device, for one round only.
"""

from __future__ import annotations

import struct

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError
from zo_common.secure_sum.device import Memory, Phase, SecureDevice
from zo_common.secure_sum.messages import KeyList, Sharers
from zo_common.secure_sum.node_keys import NodeSigner, PeerKeys
from zo_common.secure_sum.terms import Terms

_MAGIC, _VERSION = b"ZV", 2


def dump_device(device: SecureDevice) -> bytes:
    """Pack all that `load_device` needs, without the node keys."""
    memory = device.memory
    keys = tuple(memory.keys[client] for client in sorted(memory.keys))
    listed = KeyList(device.terms.session, memory.cohort, keys).encode()
    sharers = memory.sharers.encode() if memory.sharers is not None else b""
    fields = (
        memory.box_key, memory.mask_key, memory.seed, *memory.own, listed, sharers, memory.survivors,
    )  # fmt: skip
    head = struct.pack("<2sBBQIQ", _MAGIC, _VERSION, device.phase, device.client_id, device.least, memory.checksum)
    return head + device.terms.encode() + b"".join(struct.pack("<I", len(field)) + field for field in fields)


def load_device(data: bytes, signer: NodeSigner | None = None, peers: PeerKeys | None = None) -> SecureDevice:
    """Inverse of `dump_device`; signatures were checked when the keys arrived and are not checked again.

    Raises:
        CodecError: the bytes are no state, or of another version.
    """
    reader = Reader(data, "a secure sum's state")
    magic, version, phase, client_id, least, checksum = reader.take("2sBBQIQ")
    if (magic, version) != (_MAGIC, _VERSION) or phase not in set(Phase):
        raise CodecError("a secure sum's state is of another version: the device takes part in the next round")
    terms = Terms.take(reader)
    box, mask, seed, of_key, of_seed, listed, sharers, survivors = (
        reader.raw(reader.take("I")[0]) for _ in range(8)
    )  # fmt: skip
    reader.finish()
    found = KeyList.decode(listed)
    keys = {key.client_id: key for key in found.keys}
    listed_sharers = Sharers.decode(sharers) if sharers else None
    memory = Memory(box, mask, seed, (of_key, of_seed), found.cohort, keys, listed_sharers, survivors, checksum)
    device = SecureDevice(terms, client_id, signer, peers, least=least, memory=memory)
    device.phase = Phase(phase)
    return device
