"""Files of a run that never was, made up round by round with the classes that a server writes its files with.

For tests and pictures of what reads such files; the numbers mean nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.devices.device_status import DeviceStatus, DeviceStatuses
from server.messaging.byte_counts import ByteCounts
from server.run.log import AFTER, BEFORE, RoundReport, RunLog, read_rows, write_json, write_rows
from server.run.log_file import RUN_LOG
from zo_common.speech.comparison import compare, error_counts


class RunFiles:
    """A run's folder that grows round by round.

    Args:
        devices: names of its devices.
        settings: of the run, that differ from the defaults here.
    """

    def __init__(self, folder: Path, devices: Sequence[str] = ("anna", "ben"), **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = {"model": "openai/whisper-tiny.en", "num-server-rounds": 40, "privacy": "none", "output": str(folder)}
        self.settings = known | {key.replace("_", "-"): value for key, value in settings.items()}
        write_rows(folder / "settings.jsonl", [{"after_round": 0, "changed": {}, "settings": self.settings}])
        self.log = RunLog(folder)
        self.statuses = DeviceStatuses()
        for client, name in enumerate(devices):
            self.statuses.of(client).name = name
        self.curve: list[dict[str, Any]] = []
        self.ledger = folder / "ledger.zo"
        self.ledger.write_bytes(b"\1" * 64)

    def device(self, client: int) -> DeviceStatus:
        """Return the status of a device, to be changed."""
        return self.statuses.of(client)

    def round(self, refused: dict[str, int] | None = None, *, saved: bool = True, **fields: Any) -> int:
        """Write the next round, in which all devices but the refused ones answered; return its number."""
        number = len(self.log.rows) + 1
        with self.ledger.open("ab") as file:
            file.write(number.to_bytes(4, "little") * 20)
        everyone = list(self.statuses)
        missing = Counter(refused or {})
        for status in everyone[missing.total() :]:
            self.statuses.answered(status.client_id, number)
            status.payload_up += 82
            status.payload_down += 234
        count = len(everyone) - missing.total()
        values: dict[str, Any] = {
            "learning_rate": 1e-3,
            "loss": 3.0 + 1.5 * math.exp(-number / 30) + 0.1 * math.sin(number),
            "checksum": f"{number:016x}",
            "down": ByteCounts(234 * count, 259 * count),
            "up": ByteCounts(82 * count, 103 * count),
            "refused": missing,
            "ledger_bytes": self.ledger.stat().st_size,
            "seconds": 9.3,
            **fields,
        }
        self.log.append(RoundReport(number, asked=len(everyone), answered=count, **values))
        if saved:
            self.statuses.save(self.folder, number)
        return number

    def rounds(self, count: int) -> None:
        """Write so many next rounds, and the devices' statuses once, after the last."""
        for left in range(count, 0, -1):
            self.round(saved=left == 1)

    def evaluation(self, number: int, wer: float, loss: float) -> None:
        """Write an evaluation of the whole held-out split."""
        sent = {"up": self.log.total("up"), "down": self.log.total("down")}
        row = {"server_round": number, "payload": sent, "loss": loss, "wer": wer, "cer": wer / 2, "raw_wer": wer}
        row |= {"utterances": 120, "loss_utterances": 120, "headline": "wer", "normalizer": "Whisper's English"}
        self.curve.append(row)
        write_rows(self.folder / "curve.jsonl", self.curve)

    def say(self, line: str) -> None:
        """Add a line to the run's log."""
        with (self.folder / RUN_LOG).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def transcripts(self, lines: Sequence[tuple[str, str, str, str]]) -> None:
        """Write transcripts of the held-out split: speaker, reference, lines before, lines after."""
        for name, place in ((BEFORE, 2), (AFTER, 3)):
            rows = []
            for number, each in enumerate(lines):
                errors, units = error_counts(each[1], each[place], "en")
                row = {"where": f"{number}.wav", "reference": each[1], "hypothesis": each[place]}
                rows.append({**row, "errors": errors, "units": units, "columns": {"speaker": each[0]}})
            write_rows(self.folder / name, rows)

    def end(self, verdict: str = "") -> None:
        """Write the result of a run that has ended."""
        before, after = (self.curve[0], self.curve[-1]) if self.curve else (None, None)
        result = {
            "before": before,
            "after": after,
            "comparison": self._comparison(),
            "curve": self.curve,
            "guard": None,
        }
        checksum = self.log.rows[-1]["checksum"] if self.log.rows else ""
        write_json(self.folder / "evaluation.json", {**result, "verdict": verdict, "checksum": checksum})

    def _comparison(self) -> dict[str, Any] | None:
        paths = [self.folder / name for name in (BEFORE, AFTER)]
        if not all(path.exists() for path in paths):
            return None
        return compare(*(read_rows(path) for path in paths), "en", "speaker")
