"""A server that dies where it adds a record to its ledger."""

from __future__ import annotations

import pytest

from zo_common.ledger.file import LedgerFile
from zo_common.ledger.record import Record


class Killed(BaseException):
    """Stands for the end of the server's process."""


def kill(monkeypatch: pytest.MonkeyPatch, server_round: int, *, after: bool) -> None:
    """Die before, or after, the record of a round is on disk."""
    append = LedgerFile.append

    def killed(ledger: LedgerFile, record: Record) -> None:
        if record.server_round == server_round:
            if after:
                append(ledger, record)
            raise Killed
        append(ledger, record)

    monkeypatch.setattr(LedgerFile, "append", killed)
