"""Sources of ledgers: files, folders of runs, and repositories on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from zo_common.errors import LedgerError
from zo_common.ledger.file import LEDGER_NAME
from zo_common.ledger.ledger import Ledger
from zo_common.models.hub import is_hub_id
from zo_common.paths import home_expanded

LedgerSource = Ledger | str | Path


def find_ledger(source: str | Path) -> Path:
    """Return the path of a ledger: the file itself, the one in a folder, or that of a hub repository, downloaded.

    Raises:
        LedgerError: there is no ledger.
    """
    path = Path(home_expanded(str(source)))
    if path.is_dir():
        if not (path / LEDGER_NAME).is_file():
            raise LedgerError(
                f"folder {str(path)!r} holds no {LEDGER_NAME}, expected a run's folder or a ledger: check the path"
            )
        return path / LEDGER_NAME
    if is_hub_id(str(source)) and "/" in str(source):
        from zo_common.adapters.hub import fetch_ledger

        return fetch_ledger(str(source))
    if not path.is_file():
        raise LedgerError(
            f"there is no ledger {str(source)!r}, expected a file, a folder with {LEDGER_NAME} or a hub id: check it"
        )
    return path
