"""`zo-asr-ledger`: what it says of good ledgers, and one sentence of bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_grid import FakeGrid
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from server.commands import ledger as ledger_cli
from server.rounds.federation import Federation
from zo_common.config.run import RunConfig
from zo_common.ledger.file import read_ledger, write_ledger
from zo_common.ledger.ledger import Ledger

Settings = Callable[..., RunConfig]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache() -> dict[str, Any]:
    return {}


@pytest.fixture
def live(
    cache: dict[str, Any],
    settings: Settings,
    grid_of: Callable[..., FakeGrid],
    tmp_path_factory: pytest.TempPathFactory,
) -> Federation:
    """A finished run of three rounds, with the server's live weights; only its files are read."""
    if "live" not in cache:
        config = settings(output=str(tmp_path_factory.mktemp("live") / "run"))
        cache["live"] = Federation(config, grid_of(config))
        cache["live"].run()
    found: Federation = cache["live"]
    return found


@pytest.fixture
def ledger(live: Federation) -> Path:
    return live.ledger.path


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command line's entry point: exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zo-asr-ledger", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            ledger_cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def _sentence(result: tuple[int, str, str]) -> str:
    """The one sentence on stderr of a command that failed."""
    status, _, error = result
    lines = [line for line in error.splitlines() if line.strip()]
    assert status == 1
    assert "Traceback" not in error
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    return lines[0]


class TestGood:
    def test_show(self, cli: Cli, ledger: Path, live: Federation) -> None:
        status, said, _ = cli("show", ledger, "--rounds")

        assert status == 0
        for word in (
            "encoder-decoder-bias",
            "leave-one-out",
            "epsilon 0.001",
            "local-steps 2",
            f"{live.checksum:016x}",
        ):
            assert word in said
        assert f"3, 36 directions, {ledger.stat().st_size} bytes" in said
        assert sum(line.startswith("round ") and "clients 0, 1, 2" in line for line in said.splitlines()) == 3

    def test_verify(self, cli: Cli, ledger: Path, live: Federation) -> None:
        status, said, _ = cli("verify", ledger, "--threads", 2)

        assert status == 0
        assert "chain holds over 3 rounds" in said
        assert f"replayed checksum {live.checksum:016x} with 2 threads" in said

    def test_all_of_it_as_json(self, cli: Cli, ledger: Path, live: Federation, tmp_path: Path) -> None:
        checksum, joined = f"{live.checksum:016x}", tmp_path / "joined.zo"
        found = {
            command[0]: json.loads(cli(*command, "--json")[1])
            for command in (
                ("show", ledger, "--rounds"),
                ("verify", ledger, "--threads", 2),
                ("replay", ledger, tmp_path / "model"),
                ("combine", ledger, ledger, "-o", joined),
            )
        }

        assert found["show"]["checksum"] == found["show"]["records"][-1]["checksum"] == checksum
        assert (found["show"]["rounds"], found["show"]["directions"]) == (3, 36)
        assert found["show"]["settings"]["local-steps"] == 2 and found["show"]["pattern"] == "encoder-decoder-bias"
        assert [row["clients"] for row in found["show"]["records"]] == [[0, 1, 2]] * 3
        assert found["verify"] == {"rounds": 3, "checksum": checksum, "threads": 2}
        assert found["replay"] == {"output": str(tmp_path / "model"), "rounds": 3, "checksum": checksum}
        assert found["combine"] == {"output": str(joined), "rounds": 6, "bytes": joined.stat().st_size}
        _, chain, _ = cli("verify", ledger, "--no-deep", "--json")
        assert json.loads(chain) == {"rounds": 3, "checksum": None, "threads": None}

    def test_verify_of_the_chain_alone_needs_no_model(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        found = read_ledger(ledger)
        moved = tmp_path / "moved.zo"
        write_ledger(moved, replace(found, header=replace(found.header, model="/nowhere")))

        status, said, _ = cli("verify", moved, "--no-deep")

        assert (status, said.strip()) == (0, "chain holds over 3 rounds")

    def test_replay_loads_with_from_pretrained_and_equals_the_live_weights(
        self, cli: Cli, ledger: Path, live: Federation, tmp_path: Path
    ) -> None:
        status, said, _ = cli("replay", ledger, tmp_path / "model")

        assert status == 0
        assert f"checksum {live.checksum:016x}" in said
        saved = WhisperForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
        assert live.global_model is not None
        for name, value in live.global_model.model.state_dict().items():
            assert torch.equal(saved[name], value), name
        processor = WhisperProcessor.from_pretrained(tmp_path / "model")
        assert processor.tokenizer.decode(processor.tokenizer(" hello there").input_ids, skip_special_tokens=True)
        assert processor.feature_extractor.feature_size == 80
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_replay_of_the_first_rounds(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        status, said, _ = cli("replay", ledger, tmp_path / "model", "--rounds", 1)

        assert status == 0
        assert f"checksum {read_ledger(ledger).records[0].checksum:016x}" in said

    def test_an_adaptation_added_and_taken_away_is_the_base(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        joined = tmp_path / "joined.zo"

        status, said, _ = cli("combine", ledger, ledger, "-o", joined, "--weight", 1, "--weight", -1)
        _, verified, _ = cli("verify", joined)

        assert status == 0
        assert f"6 rounds, {joined.stat().st_size} bytes" in said
        assert f"{read_ledger(ledger).header.base_checksum:016x}" in verified
        assert "unknown until replayed" in cli("show", joined)[1]


class TestBad:
    @pytest.mark.parametrize("command", ["show", "verify", "replay", "combine"])
    def test_missing_file(self, cli: Cli, tmp_path: Path, command: str) -> None:
        more = {"replay": [tmp_path / "out"], "combine": ["-o", tmp_path / "out"]}.get(command, [])

        assert "No such file" in _sentence(cli(command, tmp_path / "missing.zo", *more))

    def test_another_file(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "text.zo").write_text("this is no ledger, but long enough to be looked at")

        assert "is it the right file" in _sentence(cli("show", tmp_path / "text.zo"))

    def test_every_altered_byte_is_found(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        data, path = ledger.read_bytes(), tmp_path / "altered.zo"

        for position in range(0, len(data), len(data) // 12):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            _sentence(cli("verify", path, "--no-deep"))

    @pytest.mark.parametrize("left", [0, 5, 200])
    def test_truncated_within_the_header(self, cli: Cli, ledger: Path, tmp_path: Path, left: int) -> None:
        path = tmp_path / "cut.zo"
        path.write_bytes(ledger.read_bytes()[:left])

        assert "ends within its header" in _sentence(cli("show", path))

    def test_truncated_within_a_round(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        path = tmp_path / "cut.zo"
        path.write_bytes(ledger.read_bytes()[:-5])

        assert "ends within round 3" in _sentence(cli("verify", path))

    @pytest.mark.parametrize("command", ["verify", "replay"])
    def test_wrong_base(self, cli: Cli, ledger: Path, other_whisper: Path, tmp_path: Path, command: str) -> None:
        more = [tmp_path / "out"] if command == "replay" else []

        assert "load that model" in _sentence(cli(command, ledger, *more, "--model", other_whisper))
        assert not (tmp_path / "out").exists()

    def test_base_that_is_not_found(self, cli: Cli, ledger: Path) -> None:
        assert "/nowhere" in _sentence(cli("verify", ledger, "--model", "/nowhere"))

    def test_recorded_checksum_that_replay_does_not_reach(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        found, path = read_ledger(ledger), tmp_path / "forged.zo"
        last = replace(found.records[-1], checksum=found.records[-1].checksum ^ 1)
        write_ledger(path, replace(found, records=(*found.records[:-1], last)))

        assert "the ledger records" in _sentence(cli("verify", path))

    def test_replay_into_a_directory_that_holds_something(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")

        assert "not empty" in _sentence(cli("replay", ledger, tmp_path))
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

    def test_replay_of_more_rounds_than_there_are(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        assert "rounds is 4, the ledger has 3" in _sentence(cli("replay", ledger, tmp_path / "out", "--rounds", 4))

    @pytest.mark.parametrize(
        "words",
        [
            ("verify", "--threads", -3),
            ("verify", "--threads", 4097),
            ("replay", "out", "--threads", -1),
            ("replay", "out", "--rounds", -5),
        ],
    )
    def test_numbers_out_of_range(self, cli: Cli, ledger: Path, words: tuple[object, ...]) -> None:
        command, *rest = words

        status, out, error = cli(command, ledger, *rest)

        assert (status, out) == (2, "")
        assert "not in the range" in error

    def test_combine_into_a_file_that_exists(self, cli: Cli, ledger: Path) -> None:
        before = ledger.read_bytes()

        assert "exists" in _sentence(cli("combine", ledger, ledger, "-o", ledger))
        assert ledger.read_bytes() == before

    def test_combine_with_another_number_of_weights(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        said = _sentence(cli("combine", ledger, ledger, "-o", tmp_path / "out.zo", "--weight", 1))

        assert "1 weights for 2 ledgers" in said

    def test_combine_of_other_bases(self, cli: Cli, ledger: Path, tmp_path: Path) -> None:
        found, other = read_ledger(ledger), tmp_path / "other.zo"
        write_ledger(other, replace(found, header=replace(found.header, fingerprint="ab" * 32)))

        assert "differ in base model" in _sentence(cli("combine", ledger, other, "-o", tmp_path / "out.zo"))
        assert not (tmp_path / "out.zo").exists()


def test_as_a_program(tmp_path: Path) -> None:
    """The same in a process of its own: the sentence, the exit status and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "server.commands.ledger", "show", str(tmp_path / "missing.zo")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert _sentence((done.returncode, done.stdout, done.stderr)).endswith("check the path")
    assert done.stdout == ""


def test_text_of_any_script_survives_and_is_shown(ledger: Path, tmp_path: Path, cli: Cli) -> None:
    found = read_ledger(ledger)
    words = {"text-column": "वाक्य", "train-split": "تدريب", "partition-by": "話者"}
    header = replace(found.header, model="โมเดล/语音", settings=dict(found.header.settings) | words)
    write_ledger(tmp_path / "लेजर.zo", Ledger(header, found.records))

    status, said, _ = cli("show", tmp_path / "लेजर.zo")

    assert status == 0
    assert read_ledger(tmp_path / "लेजर.zo", tolerate_torn=False).header.settings == header.settings
    for word in ("โมเดล/语音", *words.values()):
        assert word in said
