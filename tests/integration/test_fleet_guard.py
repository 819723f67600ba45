"""A deployment whose server holds neither model nor speech is guarded on what its devices say of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fleet.agreement import replayed
from benchmarks.fleet.processes import Fleet

pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(420)]


def test_resident_workers_are_asked_for_their_held_out_loss(
    whisper_dir: Path, mini_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, whisper_dir.resolve(), mini_corpus) as fleet, fleet.telling():
        run = fleet.start(
            "looks",
            num_server_rounds=2,
            learning_rate=1e-4,
            eval_split="test",
            guard_every=1,
            server_model=False,
            round_timeout=180.0,
        )
        assert run.finish(300) == 0, run.said

        rows = [json.loads(line) for line in (run.output / "guard.jsonl").read_text().splitlines()]
        found = json.loads((run.output / "evaluation.json").read_text())["guard"]
        assert rows[0]["good"] and {count for _, count in rows[0]["devices"].values()} == {3}
        assert sorted(rows[0]["devices"]) == ["0", "1", "2"]
        assert found["closing"]["chosen"] in ("last", "best", "average") and found["end"] <= found["start"]
        assert found["look_bytes"]["up"] >= 3 * 3 * 90
        assert replayed(run.ledger, fleet.model)
