"""Bounded little-endian packing: every length is checked against the available bytes before memory is allocated."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zo_common.errors import CodecError


class Reader:
    """Reader of fixed fields from untrusted bytes.

    Raises:
        CodecError: the bytes end early, or `finish` finds bytes left over.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._what = what

    @classmethod
    def open(cls, data: bytes, what: str, magic: bytes, version: int) -> Reader:
        """Return a reader behind the two bytes and the version, one byte, that all messages of a kind start with.

        Raises:
            CodecError: another kind or another version.
        """
        reader = cls(data, what)
        found, spoken = reader.take("2sB")
        if found != magic:
            raise CodecError(f"{what} starts with {found!r}, expected {magic!r}: these bytes are something else")
        if spoken != version:
            raise CodecError(f"{what} has version {spoken}, this program speaks {version}: update the older side")
        return reader

    @property
    def remaining(self) -> int:
        """Number of unread bytes."""
        return len(self._data) - self._at

    def rest(self) -> memoryview:
        """Return all unread bytes, without consuming them."""
        return self._data[self._at :]

    def raw(self, count: int) -> bytes:
        """Read the next `count` bytes."""
        if not 0 <= count <= self.remaining:
            raise CodecError(
                f"{self._what} ends early: {count} bytes expected at offset {self._at}, {self.remaining} left"
            )
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def take(self, layout: str) -> tuple[Any, ...]:
        """Read fields of a `struct` layout, little-endian."""
        layout = "<" + layout
        return struct.unpack(layout, self.raw(struct.calcsize(layout)))

    def floats(self, count: int) -> NDArray[np.float32]:
        """Read the next `count` float32 values (a copy)."""
        return np.frombuffer(self.raw(4 * count), "<f4").astype(np.float32)

    def signs(self, count: int) -> NDArray[np.float32]:
        """Read the next `count` signs as ±1, one bit each as `pack_signs` writes them."""
        bits = np.unpackbits(np.frombuffer(self.raw((count + 7) // 8), np.uint8), bitorder="little")
        if bits[count:].any():
            raise CodecError(f"{self._what} has bits set behind its {count} signs")
        return np.where(bits[:count], -1.0, 1.0).astype(np.float32)

    def text(self) -> str:
        """Read a UTF-8 string with a u16 length before it."""
        try:
            return self.raw(self.take("H")[0]).decode()
        except UnicodeDecodeError:
            raise CodecError(f"{self._what} holds a string that is not UTF-8") from None

    def finish(self) -> None:
        """Refuse trailing bytes."""
        if self.remaining:
            raise CodecError(f"{self._what} has {self.remaining} bytes too many")


def pack_signs(values: NDArray[np.float32]) -> bytes:
    """Pack one bit per value, 1 for a negative one, lowest bit first, the last byte padded with 0."""
    return np.packbits(values.reshape(-1) < 0, bitorder="little").tobytes()


def pack_text(text: str, limit: int = 1000) -> bytes:
    """Pack a UTF-8 string of at most `limit` bytes with a u16 length before it."""
    encoded = text.encode(errors="replace")[:limit].decode(errors="ignore").encode()
    return struct.pack("<H", len(encoded)) + encoded
