"""Sanitized text from devices for the operator's log: no control or escape characters, bounded length."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with all characters replaced except printable ones and line ends."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain(text: str, limit: int = 1000) -> str:
    """Return the text as one printable line of at most `limit` characters."""
    return printable(" ".join(text[: 4 * limit].split()))[:limit]
