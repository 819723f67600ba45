"""The commit on which a number was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).parent.parent.parent


def revision() -> str | None:
    """Return short commit id, with "+changes" where files other than results differ from it; None without git."""
    commit = _git("rev-parse", "--short", "HEAD")
    if commit is None:
        return None
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return commit + ("+changes" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
