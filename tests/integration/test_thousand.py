"""Many virtual devices in Flower's real simulation engine, a sample of them asked each round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crowd import write_many_rows
from scenario_run import run_scenario_file

from zo_common.ledger.file import read_ledger

DEVICES, ASKED, ROUNDS = 60, 20, 3
SCENARIO = """
name = "crowd"
[simulation]
devices = {devices}
[run]
model = '{model}'
data = '{data}'
partition-by = "round-robin"
num-queries = 2
batch-size = 2
num-server-rounds = {rounds}
min-clients = {devices}
clients-per-round = {asked}
"""


@pytest.mark.slow
def test_many_devices_on_few_processes(tiny_whisper: Path, mini_corpus: Path, tmp_path: Path) -> None:
    data = write_many_rows(mini_corpus, tmp_path / "many", rows=DEVICES + DEVICES // 2)
    text = SCENARIO.format(model=tiny_whisper, data=data, devices=DEVICES, asked=ASKED, rounds=ROUNDS)

    output, _ = run_scenario_file(tmp_path, text)

    result = json.loads((output / "result.json").read_text())
    assert result["checksums_agree"] is True
    ledger = read_ledger(output / "ledger.zo", tolerate_torn=False)
    asked = [[c.client_id for c in record.contributions] for record in ledger.records]
    assert [len(clients) for clients in asked] == [ASKED] * ROUNDS
    assert len({client for clients in asked for client in clients}) > ASKED
    assert not list(output.glob("features-*"))
