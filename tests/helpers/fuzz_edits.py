"""Damage to valid bytes: flips, cuts, repeats, length fields, odd JSON values, and bytes that are nothing at all."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

OPERATIONS = ("flip", "cut", "keep", "repeat", "insert", "number", "splice", "random", "json", "drop-key")
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 255, 65536, 2**31, 2**63, 2**64, -(2**64), 10**400, 0.5, 1e308, -0.0),
    *(float("inf"), float("nan"), "", "x", "\ud800", "\x00", "9" * 5000, "a" * 70_000, [], [[]], {}, {"": {}}),
    *([0] * 3, [1e999], ["a", None], {"standing": []}, "0x10", " 12 ", "１２", [-1], [2**70], [[1, [2, [3]]]]),
)
DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Edit:
    """One change: where, as a share of the length, how many bytes or which value, and a number to draw bytes from."""

    operation: str
    place: float
    size: int
    value: int


def edited(data: bytes, edits: list[Edit], other: bytes) -> bytes:
    """The bytes after all edits; `other` is a second valid input to splice in."""
    for edit in edits:
        data = _edit(data, edit, other)
    return data


def _edit(data: bytes, edit: Edit, other: bytes) -> bytes:
    at = min(int(edit.place * (len(data) + 1)), len(data))
    end = min(at + edit.size, len(data))
    noise = random.Random(edit.value)
    if edit.operation == "flip" and data:
        at = min(at, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << edit.value % 8)]) + data[at + 1 :]
    if edit.operation == "number":
        width = (1, 2, 4, 8)[edit.size % 4]
        number = (NUMBERS[edit.value % len(NUMBERS)] & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        return data[:at] + number + data[at + width :]
    if edit.operation == "json":
        return _json_edit(data, edit)
    if edit.operation == "drop-key":
        return _json_edit(data, edit, drop=True)
    if edit.operation == "random":
        return DEEP if edit.value % 50 == 0 else noise.randbytes(edit.size)
    return {
        "cut": data[:at] + data[end:],
        "keep": data[:at],
        "repeat": data[:end] + data[at:end] * (1 + edit.value % 4) + data[end:],
        "insert": data[:at] + noise.randbytes(edit.size) + data[at:],
        "splice": data[:at] + other[int(edit.place * len(other)) :],
    }.get(edit.operation, data)


def _json_edit(data: bytes, edit: Edit, drop: bool = False) -> bytes:
    """JSON with one value replaced or left out; other bytes stay as they are."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return data
    spots: list[tuple[Any, Any]] = []
    queue: list[Any] = [root]
    while queue and len(spots) < 10_000:
        holder = queue.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            spots.append((holder, key))
            if isinstance(holder[key], list | dict):
                queue.append(holder[key])
    holder, key = spots[int(edit.place * len(spots)) % len(spots)]
    if drop and holder is not root:
        del holder[key]
    else:
        holder[key] = ODD[edit.value % len(ODD)]
    try:
        return json.dumps(root[0]).encode(errors="surrogatepass")
    except ValueError:  # an integer of too many digits
        return b"1" * 5000


def random_edits(rng: random.Random, json_text: bool) -> list[Edit]:
    """One to four edits; of JSON, mostly of its values."""
    names = OPERATIONS if not json_text else ("json", "json", "json", "drop-key", *OPERATIONS)
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    return [
        Edit(rng.choice(names), rng.random(), min(int(rng.expovariate(0.08)), 600), rng.getrandbits(32))
        for _ in range(count)
    ]
