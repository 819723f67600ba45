"""The outcome of a run in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.rounds.verdict import EVALUATION
from server.run.state import LEDGER_NAME
from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger
from zo_common.ledger.ledger import Ledger


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Attributes:
        config: the settings that it ran with.
        before, after: evaluation of the base and of the adapted model on `eval-split`: loss (nats a token or
            character), wer, cer, raw_wer (shares) and utterances; None where nothing is evaluated.
        checksum: state checksum of the adapted model, 16 hex digits.
        verdict: one sentence where the run did not make the model better; empty otherwise.
    """

    config: RunConfig
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    checksum: str
    verdict: str

    @classmethod
    def of(cls, config: RunConfig) -> TrainResult:
        """The result that a run left in its output."""
        found = json.loads((Path(config.output) / EVALUATION).read_text())
        return cls(config, found["before"], found["after"], found["checksum"], found["verdict"])

    @property
    def output(self) -> Path:
        """Folder of the run: `ledger.zo`, `rounds.jsonl`, `evaluation.json` and `model/`."""
        return Path(self.config.output)

    @property
    def ledger(self) -> Ledger:
        """The run's ledger, read from `output`."""
        return read_ledger(self.output / LEDGER_NAME)
