"""Assembly of a snapshot from its parts: in order, repeats allowed, of bounded size."""

from __future__ import annotations

from zo_common.ledger.snapshot import SnapshotPart


class SnapshotParts:
    """The parts received of one snapshot; the first part of another one replaces them."""

    def __init__(self) -> None:
        self._of: tuple[int, int, int] | None = None
        self._data = bytearray()
        self._done = 0

    def add(self, part: SnapshotPart, limit: int) -> bool:
        """Add a part; return False if parts before it are missing, or all together exceed `limit` bytes.

        A part that was added already, as by a repeated message, is ignored.
        """
        of = part.server_round, part.checksum, part.parts
        if part.part == 0 and of != self._of:
            self._of, self._data, self._done = of, bytearray(), 0
        if of != self._of or part.part > self._done:
            return False
        if part.part == self._done:
            if len(self._data) + len(part.data) > limit:
                self._of = None
                return False
            self._data += part.data
            self._done += 1
        return True

    @property
    def complete(self) -> bool:
        """Whether all parts have arrived."""
        return self._of is not None and self._done == self._of[2]

    @property
    def data(self) -> bytes:
        """The parts that have arrived, joined."""
        return bytes(self._data)
