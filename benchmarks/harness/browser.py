"""A headless Chromium of this machine, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str:
    """Return the path of an installed Chromium or Chrome; empty if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), "")


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a browser; it ends with the block.

    Raises:
        RuntimeError: no Chromium is installed.
        ImportError: playwright is not.
    """
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    if not path:
        raise RuntimeError("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # no sandbox: containers and continuous integration run as root; the pages are our own, from loopback
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()
