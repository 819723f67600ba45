"""The graph of pairwise masks: all with all, or a regular graph in which each device has few neighbours."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable
from functools import cached_property

from zo_common.errors import CodecError
from zo_common.secure_sum.terms import PERSON, Terms


class Graph:
    """The cohort of one secure sum and its edges, a function of terms and cohort.

    The devices form a circle in the order of a hash of session and id; the neighbours of each are the
    `terms.neighbours` / 2 next to it on either side (Bell et al., Secure Single-Server Aggregation with
    (Poly)Logarithmic Overhead, CCS 2020, whose graph this is: a Harary graph on shuffled nodes). The shuffle is public:
    it protects if the server does not choose who drops out; against one that does, let all mask with all.

    Args:
        cohort: client ids, ascending.
    """

    def __init__(self, terms: Terms, cohort: tuple[int, ...]) -> None:
        self.cohort = cohort
        self._places = {client: place for place, client in enumerate(cohort)}
        self._half = terms.neighbours // 2
        self._session = terms.session

    def __contains__(self, client_id: int) -> bool:
        return client_id in self._places

    @cached_property
    def _circle(self) -> tuple[tuple[int, ...], dict[int, int]]:
        def rank(client: int) -> bytes:
            data = self._session + struct.pack("<Q", client)
            return hashlib.blake2b(data, digest_size=16, person=PERSON).digest()

        order = tuple(sorted(self.cohort, key=rank))
        return order, {client: place for place, client in enumerate(order)}

    @cached_property
    def digest(self) -> bytes:
        """Hash of the cohort, 32 bytes."""
        ids = struct.pack(f"<{len(self.cohort)}Q", *self.cohort)
        return hashlib.blake2b(ids, digest_size=32, person=PERSON).digest()

    def closed(self, client_id: int) -> tuple[int, ...]:
        """Return a device and its neighbours, ascending."""
        count = len(self.cohort)
        if not self._half or 2 * self._half >= count - 1:
            return self.cohort
        order, places = self._circle
        at = places[client_id]
        return tuple(sorted(order[(at + step) % count] for step in range(-self._half, self._half + 1)))

    def neighbours(self, client_id: int) -> tuple[int, ...]:
        """Return the devices with which a device masks, ascending."""
        return tuple(other for other in self.closed(client_id) if other != client_id)

    def point(self, client_id: int) -> int:
        """Return the number of a device as a holder of shares, from 1."""
        return self._places[client_id] + 1

    def bitmap(self, members: Collection[int]) -> bytes:
        """Pack a set of the cohort's devices, a bit each; the first device's is the lowest of the first byte."""
        bits = bytearray((len(self.cohort) + 7) // 8)
        for client in members:
            place = self._places[client]
            bits[place // 8] |= 1 << place % 8
        return bytes(bits)

    def members(self, bitmap: bytes) -> frozenset[int]:
        """Inverse of `bitmap`.

        Raises:
            CodecError: the bitmap has another length, or bits beyond the cohort.
        """
        count = len(self.cohort)
        if len(bitmap) != (count + 7) // 8 or int.from_bytes(bitmap, "little") >> count:
            raise CodecError(f"a set of devices has {len(bitmap)} bytes that do not fit a cohort of {count}")
        return frozenset(client for place, client in enumerate(self.cohort) if bitmap[place // 8] >> place % 8 & 1)


def cohort_of(ids: Iterable[int]) -> tuple[int, ...]:
    """Return ids in ascending order, the common order of all devices."""
    return tuple(sorted(ids))
