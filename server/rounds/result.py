"""The result of a run, read from its output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from server.run.log import EVALUATION
from zo_common.config.run import RunConfig
from zo_common.ledger.file import LEDGER_NAME, read_ledger
from zo_common.ledger.ledger import Ledger


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        config: the run's settings.
        before, after: evaluation of the base and of the adapted model on `eval-split`: loss (nats per token or
            character), wer, cer, raw_wer (fractions) and utterances; None without an evaluation.
        checksum: state checksum of the adapted model, 16 hex digits; empty with `server-model = false`.
        verdict: one sentence if the run did not improve the model; empty otherwise.
    """

    config: RunConfig
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    checksum: str
    verdict: str

    @classmethod
    def of(cls, config: RunConfig, **others: Any) -> Self:
        """Read the result of a run from its output folder; `others` are a subclass's own fields."""
        found = json.loads((Path(config.output) / EVALUATION).read_text())
        return cls(config, found["before"], found["after"], found["checksum"], found["verdict"], **others)

    @property
    def output(self) -> Path:
        """Folder of the run: `ledger.zo`, `rounds.jsonl`, `evaluation.json` and, with a server model, `model/`."""
        return Path(self.config.output)

    @property
    def ledger(self) -> Ledger:
        """The run's ledger, read from `output`."""
        return read_ledger(self.output / LEDGER_NAME)
