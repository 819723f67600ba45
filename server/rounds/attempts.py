"""Attempts at each round of a run with secure sums: a round that is asked for again has other directions.

A device answers a seed once under masks (`client.device.masked_seeds`). A server that crashed after devices had masked,
and resumes, or whose sum some device made impossible, therefore counts the attempt into the seed; the count is on disk
before the first message of the round.
"""

from __future__ import annotations

import json
from pathlib import Path

from zo_common.binary.durable import write_durably
from zo_common.directions.seeds import MOST_ATTEMPTS
from zo_common.errors import LedgerError, RunStopped

ATTEMPTS_NAME = "attempts.json"


class Attempts:
    """The count of the run's present round, in a file beside its ledger.

    Attributes:
        count: how often that round was begun before.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / ATTEMPTS_NAME
        self.count = 0

    def begin(self, server_round: int) -> int:
        """Begin a round; return how often it was begun before.

        Raises:
            RunStopped: more often than devices accept.
            LedgerError: the file cannot be read or written; no device may be asked.
        """
        try:
            last, count = json.loads(self._path.read_text()) if self._path.exists() else (0, 0)
            attempt = int(count) + 1 if last == server_round else 0
            if attempt >= MOST_ATTEMPTS:
                raise RunStopped(
                    f"round {server_round} was begun {attempt} times, and devices accept no other directions for it: "
                    "begin a new run with another run-seed from the exported model"
                )
            write_durably(self._path, json.dumps([server_round, attempt]).encode())
            self.count = attempt
        except (OSError, ValueError, TypeError) as error:
            raise LedgerError(f"{self._path} cannot be used ({error}): put it back, or free space") from None
        return attempt
