"""A hook of mkdocs: links from a page to files beside docs/ become plain text, as the site lacks these files."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **others: Any) -> str:
    """Return a page's Markdown for the site; mkdocs calls this for each page.

    Args:
        page: of mkdocs; its `file.src_uri` is the path below docs/.
    """
    return without_outside_links(markdown, page.file.src_uri)


def without_outside_links(markdown: str, path: str) -> str:
    """Replace links that leave the folder of the pages by their text.

    Args:
        path: of the page below that folder, with slashes.
    """

    def shown(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        return match[1] if target.startswith("../") else match[0]

    return _LINK.sub(shown, markdown)
