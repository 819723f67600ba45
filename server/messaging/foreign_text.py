"""Sanitized text from devices for the operator's log: no control or escape characters, bounded length."""

from __future__ import annotations

from zo_common.console import printable

__all__ = ["plain", "printable"]


def plain(text: str, limit: int = 1000) -> str:
    """Return the text as one printable line of at most `limit` characters."""
    return printable(" ".join(text[: 4 * limit].split()))[:limit]
