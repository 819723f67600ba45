"""JSON and TOML read as values of a type, checked strictly by pydantic: text or booleans do not pass as numbers."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""`__pydantic_config__` of a dataclass that is read from a file."""
Count = Annotated[int, Field(ge=0, lt=1 << 64)]


def read_json(kind: type[T], text: str | bytes) -> T:
    """Parse JSON text as a value of a type, such as a dataclass with `STRICT`.

    Raises:
        ValueError: the text does not match; names the key, the actual and the expected value.
    """
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_phrase(error)) from None
    return found


def read_values(kind: type[T], values: Any) -> T:
    """As `read_json`, for a table that was read from JSON or TOML."""
    try:
        text = json.dumps(values, default=str)  # values without a JSON type, such as dates, match no type here
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return read_json(kind, text)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _phrase(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"])) or "it"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key} is no known key"
    return f"{key} is {first['input']!r:.200}, {first['msg'].replace('Input should be', 'expected', 1)}"
