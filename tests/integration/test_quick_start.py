"""The quick start in small: real Whisper-tiny.en in Flower's real simulation engine, as `zo-asr-sim run` starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenario_run import run_scenario_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from zo_common.estimator.curvature import Curvature
from zo_common.estimator.settings import EstimatorConfig
from zo_common.ledger.file import read_ledger
from zo_common.wire.plan import Plan, Reply, Status, encode_plan, encode_reply

DEVICES, ROUNDS, QUERIES = 2, 2, 2
SCENARIO = """
name = "small"
[simulation]
devices = 2
[run]
model = '{model}'
data = '{data}'
partition-by = "iid"
eval-split = "test"
num-queries = 2
local-steps = 1
batch-size = 2
num-server-rounds = 2
min-clients = 2
loss-check = false
"""


@pytest.mark.slow
def test_the_quick_start_in_small(whisper_dir: Path, mini_corpus: Path, tmp_path: Path) -> None:
    output, said = run_scenario_file(tmp_path, SCENARIO.format(model=whisper_dir.resolve(), data=mini_corpus))

    ledger = read_ledger(output / "ledger.zo", tolerate_torn=False)
    checksum = f"{ledger.records[-1].checksum:016x}"
    for word in ("round 1/2", "round 2/2", "agree", checksum):
        assert word in said
    _check_result(output, checksum)
    _check_payload(output)
    assert (output / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [[c.client_id for c in record.contributions] for record in ledger.records[:ROUNDS]] == [[0, 1]] * ROUNDS
    assert len(ledger.records) <= ROUNDS + 1  # one more where the guard went back to a better state
    saved = WhisperForConditionalGeneration.from_pretrained(output / "model")
    assert saved.config.d_model == 384
    processor = WhisperProcessor.from_pretrained(output / "model")
    assert processor.tokenizer.normalize("Colour!") == "color"


def _check_result(output: Path, checksum: str) -> None:
    result = json.loads((output / "result.json").read_text())
    assert result["checksum"] == result["replayed_checksum"] == checksum
    assert result["checksums_agree"] is True
    assert result["devices"] == DEVICES
    assert 0 < result["after"]["loss"] < 100
    assert result["before"]["utterances"] == result["after"]["utterances"] == 3
    assert result["ledger_bytes"] == (output / "ledger.zo").stat().st_size
    assert result["traffic"]["fedavg_each_way"] > 100_000_000


def _check_payload(output: Path) -> None:
    """Bytes counted in the run are those of the codec: the first plan has no round with it, the second has one."""
    ledger = read_ledger(output / "ledger.zo")
    scalars = ledger.records[0].contributions[0].coefficients
    reply = Reply(Status.OK, 1, 0, 0, 0, 0, 1, 0.0, scalars, curvature=Curvature(1.0, 1.0, 1.0, 1.0))
    estimator = EstimatorConfig("leave-one-out", QUERIES, 1e-3)
    plans = [
        Plan(server_round, 0, 0, 0, 0, 1, 2, 1e-3, estimator, ledger.records[: server_round - 1])
        for server_round in (1, 2)
    ]
    rows = [json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not row["closing"]]
    assert [row["up"]["payload"] for row in rows] == [DEVICES * len(encode_reply(reply))] * ROUNDS
    # two actors serve two devices, so that one that moved to another actor may have had to ask for a round
    down = [row["down"]["payload"] for row in rows]
    assert down[0] == DEVICES * len(encode_plan(plans[0]))
    assert down[1] in [n * len(encode_plan(plans[1])) for n in (DEVICES, DEVICES + 1, 2 * DEVICES)]
