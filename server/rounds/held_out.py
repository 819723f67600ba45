"""Evaluation of the server's model on a held-out split: before, during and after a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.rounds.events import EvaluatedRun, Events
from server.run.evaluations import read_curve, read_devices, read_transcripts
from server.run.log import AFTER, BEFORE, CURVE, ON_DEVICES, write_rows
from server.run.model import GlobalModel
from zo_common.config.run import RunConfig
from zo_common.speech.comparison import compare, compare_devices, error_counts, rate_interval, rate_intervals
from zo_common.speech.evaluation import Evaluation, evaluate, held_out_loss
from zo_common.speech.manifest import read_manifest
from zo_common.speech.recordings import Recordings, read_speech, spread

logger = logging.getLogger(__name__)


class HeldOut:
    """Evaluates the global model on a held-out split before, during and after a run.

    The first and last evaluation of a run decode the whole split, whatever their rounds. Those between decode
    `eval-utterances` of it, evenly spaced (0: none). The loss is always that of the whole split.
    Every evaluation is a line of `<output>/curve.jsonl`, so that a resumed run keeps earlier results. The transcripts
    of the first and last one are in `<output>/transcripts-before.jsonl` and `-after.jsonl`. If devices evaluate, their
    counts are in `devices-before.jsonl` and `-after.jsonl`.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.output) / CURVE
        self.data: Recordings | None = None
        self.curve: list[dict[str, Any]] = []
        self._columns: dict[str, Mapping[str, str]] = {}

    def prepare(self, global_model: GlobalModel | None) -> None:
        """Read the held-out split, so that its problems are reported before a ledger exists."""
        if self.config.eval_split and global_model is not None and self.config.evaluate_on == "server":
            self._load(global_model)

    def __call__(self, server_round: int, federation: EvaluatedRun) -> dict[str, Any] | None:
        """Evaluate at a round, unless a resumed run has this result already."""
        global_model = federation.global_model
        on_clients = self.config.evaluate_on == "clients"
        if not self.config.eval_split or (global_model is None and not on_clients):
            return None
        if not self.curve and federation.resumed and self.path.exists():
            self.curve = [row for row in read_curve(self.path) if row["server_round"] <= server_round]
        final = server_round >= federation.guard.final_round
        again = bool(self.curve) and self.curve[-1]["server_round"] == server_round
        if again and (not final or _is_whole(self.curve[-1])):
            return self.curve[-1]
        sent = {"up": federation.log.total("up"), "down": federation.log.total("down")}
        measured: dict[str, Any] | None
        name = "" if self.curve and not final else AFTER if self.curve else BEFORE
        if global_model is None or on_clients:
            measured = self._ask_devices(server_round, federation, name)
        else:
            measured = self._measure(server_round, global_model, federation.events, name)
        if measured is None:
            return None
        row = {"server_round": server_round, "payload": sent, **measured}
        self.curve = [*(self.curve[:-1] if again else self.curve), row]  # repeated: replaces the earlier one
        self._write(self.path, self.curve)
        return row

    def comparison(self) -> dict[str, Any] | None:
        """Compare the last with the first evaluation of the whole split, with intervals and groups, if both exist."""
        on_clients = self.config.evaluate_on == "clients"
        paths = [self.path.with_name(ON_DEVICES[name] if on_clients else name) for name in (BEFORE, AFTER)]
        whole = [row for row in self.curve if _is_whole(row)]
        if len(whole) < 2 or not all(path.exists() for path in paths):
            return None
        before, after = (read_devices(path) if on_clients else read_transcripts(path) for path in paths)
        if on_clients:
            return compare_devices(before, after, self.config.language)
        return compare(before, after, self.config.language, self.config.partition_by)

    def _ask_devices(self, server_round: int, federation: EvaluatedRun, transcripts: str) -> dict[str, Any] | None:
        """As `_measure`, on the devices' own speech: they send counts."""
        if (found := federation.evaluate_on_clients(server_round)) is None:
            return None
        summary, counts = found
        if transcripts:
            self._write(self.path.with_name(ON_DEVICES[transcripts]), counts)
        if (interval := rate_interval(counts)) is not None:
            summary |= {f"{summary['headline']}_interval": interval}
        return summary

    def _measure(
        self, server_round: int, global_model: GlobalModel, events: Events, transcripts: str
    ) -> dict[str, Any]:
        """Measure the loss of the whole split, and error rates of a part, or of all if `transcripts` names a file."""
        data = self._load(global_model)
        whole: dict[str, Any] = {"loss_utterances": len(data)}
        if transcripts:
            found = self._decode(server_round, global_model, data, events)
            self._write(self.path.with_name(transcripts), self._transcripts(data, found))
            return _summary(data, found) | whole
        whole |= {"loss": held_out_loss(global_model.speech, data)}
        if not self.config.eval_utterances:
            return whole
        some = spread(data, self.config.eval_utterances)
        return _summary(some, self._decode(server_round, global_model, some, events)) | whole

    def _decode(self, server_round: int, global_model: GlobalModel, data: Recordings, events: Events) -> Evaluation:
        label = f"decoding {self.config.eval_split}, round {server_round}"
        return evaluate(
            global_model.speech,
            data,
            language=self.config.language,
            on_progress=lambda done, total: events.on_stage(label, done, total),
        )

    def _transcripts(self, data: Recordings, found: Evaluation) -> list[dict[str, Any]]:
        rows = []
        for example, hypothesis in zip(data.examples, found.hypotheses, strict=True):
            errors, units = error_counts(example.text, hypothesis, self.config.language)
            columns = {name: str(value) for name, value in self._columns.get(example.where, {}).items()}
            row = {"where": example.where, "reference": example.text, "hypothesis": hypothesis}
            rows.append({**row, "errors": errors, "units": units, "columns": columns})
        return rows

    def _write(self, path: Path, rows: list[dict[str, Any]]) -> None:
        try:
            write_rows(path, rows)
        except OSError as error:  # the next evaluation writes all rows
            logger.warning(f"{path} is not written: {error.strerror}")

    def _load(self, global_model: GlobalModel) -> Recordings:
        if self.data is None:
            config = self.config
            manifest = read_manifest(config.data, split=config.eval_split, text_column=config.text_column)
            self._columns = {utterance.where: utterance.columns for utterance in manifest.utterances}
            self.data = read_speech(manifest, global_model.speech.reader(**config.reading), skip_bad=config.skip_bad)
        return self.data


def _summary(data: Recordings, found: Evaluation) -> dict[str, Any]:
    """Return the numbers of an evaluation, with the intervals of its rates."""
    return found.summary() | rate_intervals(data.texts, found.hypotheses, found.language)


def _is_whole(row: dict[str, Any]) -> bool:
    """Return whether an evaluation decoded all utterances, as devices' evaluations always do."""
    return "wer" in row and row["utterances"] == row.get("loss_utterances", row["utterances"])
