"""Words of devices, made fit for the operator's log: no control or escape characters, bounded length."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything but printable characters and line ends replaced."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain(text: str, limit: int = 1000) -> str:
    """One printable line of at most `limit` characters."""
    return printable(" ".join(text[: 4 * limit].split()))[:limit]
