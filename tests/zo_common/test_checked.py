"""What is read from a file is of its type, or one phrase says why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pytest

from zo_common.checked import STRICT, Count, read_json, read_values


@dataclass(frozen=True)
class Row:
    __pydantic_config__ = STRICT
    number: Count
    share: float = 0.5
    names: tuple[str, ...] = ()


@pytest.mark.parametrize("row", [Row(0), Row(2**64 - 1, -1.5, ("anna", "ben"))])
def test_what_is_written_is_read(row: Row) -> None:
    assert read_values(Row, asdict(row)) == row


def test_a_whole_number_is_a_number() -> None:
    share = read_json(Row, b'{"number": 1, "share": 1}').share
    assert (share, type(share)) == (1.0, float)


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        ({"number": "1"}, "number is '1', expected a valid integer"),
        ({"number": True}, "number is True, expected a valid integer"),
        ({"number": 1.0}, "number is 1.0, expected a valid integer"),
        ({"number": -1}, "number is -1, expected greater than or equal to 0"),
        ({"number": 2**64}, f"number is {2**64}, expected less than {2**64}"),
        ({"number": 1, "share": float("nan")}, "share is nan, expected a finite number"),
        ({"number": 1, "names": ["anna", 2]}, "names.1 is 2, expected a valid string"),
        ({}, "number is missing"),
        ({"number": 1, "more": 2}, "more is no known key"),
        ([], "it is [], expected an object"),
    ],
)
def test_anything_else_is_refused_with_what_was_got_and_expected(values: Any, phrase: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_values(Row, values)
    assert str(caught.value) == phrase


def test_what_is_nested_without_end_is_refused() -> None:
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(ValueError):
        read_values(Row, nested)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        read_values(Row, deep)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"number": 1' + b"0" * 10_000 + b"}"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        read_json(Row, text)
