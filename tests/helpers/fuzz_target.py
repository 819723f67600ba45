"""What a fuzzed reader is: how it is called, valid inputs, and what it may raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Attributes:
        read: takes the bytes; returns anything, raises nothing but `errors`.
        seeds: valid inputs.
        wrap: puts checksums around damaged bytes, so that they are looked into.
        is_json: whether inputs are JSON text.
        allowance: bytes it may allocate whatever the input's size.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = ()
    wrap: Callable[[bytes], bytes] = bytes
    is_json: bool = False
    allowance: int = 2 << 20
