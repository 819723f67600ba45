"""Pages that are written by a command, which lint runs to see that they are up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def write_or_check(page: Path, text: str, module: str, shown: str) -> None:
    """Write a page, or with `--check` on the command line exit with a message where it is out of date.

    Args:
        module: of the command, e.g. `benchmarks.pages.settings`.
        shown: what the page shows, for the message.
    """
    parser = argparse.ArgumentParser(description=f"Write docs/{page.name}, or check it.")
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        page.write_text(text)
    elif not page.exists() or page.read_text() != text:
        sys.exit(f"docs/{page.name} does not show {shown}: run python -m {module}")
