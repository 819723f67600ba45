"""Small inputs as people bring them, each by its whole command: it runs, or one sentence says what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from called import Call, caller
from safetensors.torch import load_file, save_file
from tiny_ctc import RATE, noise_waves

from client.adapt import cli as adapt_cli
from simulations import cli
from simulations.models.tiny import write_tiny_whisper
from zo_common.models.export import export_model
from zo_common.models.load import load_model
from zo_common.speech import cli as data_cli

ROWS = [  # speaker, name, text: as voice assistants are spoken to
    ("m1", "0000", "Can the dentist call me back on Monday?"),
    ("m1", "0001", "My microwave needs a new battery, can you send someone?"),
    ("f2", "0000", "Avoid the bridge and drive past the station."),
    ("f2", "0001", "My father will sign for the mattress."),
]
Write = Callable[[Path], None]


@pytest.fixture
def call(in_memory: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs `zo-asr-sim` in an empty folder, on the in-memory grid, without its replay in another process."""
    monkeypatch.setattr("simulations.demo.replayed_elsewhere", lambda output, model, threads: "not replayed in tests")
    monkeypatch.chdir(tmp_path)
    return caller("zo-asr-sim", cli.main, monkeypatch, capsys)


@pytest.fixture
def scenario(tiny_wav2vec2: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes `scn.toml`, of one round; the setting `noise-check` is of an earlier release."""

    def write(devices: int = 2, model: Path = tiny_wav2vec2, data: object = tmp_path / "data", more: str = "") -> Path:
        text = (
            f'name = "scn"\n[simulation]\ndevices = {devices}\nactors = 1\n[run]\nmodel = "{model}"\ndata = "{data}"\n'
            'trained-tensors = "norm"\nnum-queries = 2\nnum-server-rounds = 1\nbatch-size = 2\nlearning-rate = 1e-4\n'
            f"noise-check = false\n{more}"
        )
        (tmp_path / "scn.toml").write_text(text)
        return tmp_path / "scn.toml"

    return write


def _record(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (wave,) = noise_waves(3 * RATE // 2, seed=seed)
    soundfile.write(path, wave, RATE)


def _recorded(folder: Path, suffix: str = ".wav") -> Path:
    """The train split's recordings, a folder a speaker."""
    for number, (speaker, name, _) in enumerate(ROWS):
        _record(folder / "train" / speaker / f"{name}{suffix}", number)
    return folder / "train" / "metadata.csv"


def _table(folder: Path, header: str, line: str, newline: str = "\n", encoding: str = "utf-8") -> None:
    """A table whose lines are those of ROWS, with the fields {0} speaker, {1} name and {2} text."""
    lines = [header, *(line.format(*row) for row in ROWS)]
    _recorded(folder).write_bytes("".join(text + newline for text in lines).encode(encoding))


def _excel(folder: Path) -> None:
    _table(folder, "file_name,transcription,speaker,,", '{0}/{1}.wav,"{2}",{0},,', "\r\n", "utf-8-sig")
    with (folder / "train" / "metadata.csv").open("ab") as file:
        file.write(b",,,,\r\n,,,,\r\n")


def _semicolons(folder: Path) -> None:
    _table(folder, "file_name;transcription;speaker", "{0}/{1}.wav;{2};{0}", "\r\n", "utf-8-sig")


def _backslashes(folder: Path) -> None:
    _table(folder, "file_name,transcription,speaker", '{0}\\{1}.wav,"{2}",{0}')


def _common_voice(folder: Path) -> None:
    lines = ["client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale"]
    for number, (speaker, _, text) in enumerate(ROWS):
        _record(folder / "clips" / f"common_voice_en_{number}.mp3", number)
        lines.append(f"{speaker}\tcommon_voice_en_{number}.mp3\t{text}\t2\t0\t\t\t\ten")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")


def _librispeech(folder: Path) -> None:
    for speaker in (84, 85):
        chapter = folder / "train" / str(speaker) / "121123"
        for number in range(2):
            _record(chapter / f"{speaker}-121123-{number:04d}.flac", number)
        texts = [f"{speaker}-121123-{number:04d} TURN IT ON\n" for number in range(2)]
        (chapter / f"{speaker}-121123.trans.txt").write_text("".join(texts))


def _plain(folder: Path) -> None:
    _table(folder, "file_name,transcription,speaker", '{0}/{1}.wav,"{2}",{0}')


@pytest.mark.parametrize(
    "write", [_excel, _semicolons, _backslashes, _common_voice, _librispeech], ids=lambda write: write.__name__[1:]
)
def test_tables_and_layouts_are_read_as_they_are(
    call: Call, scenario: Callable[..., Path], tmp_path: Path, write: Write
) -> None:
    write(tmp_path / "data")
    scenario()

    status, said, error = call("run", "scn.toml", "--output", "out")

    assert (status, "error" in error) == (0, False), error + said
    (line,) = (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()
    assert json.loads(line)["answered"] == 2
    (line,) = (tmp_path / "out" / "introductions.jsonl").read_text().splitlines()
    assert json.loads(line)["skipped"] == {}


def test_a_scenario_with_a_byte_order_mark(call: Call, scenario: Callable[..., Path], tmp_path: Path) -> None:
    _plain(tmp_path / "data")
    path = scenario()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert call("run", "scn.toml", "--output", "out")[0] == 0


def test_a_wrong_quote_costs_its_own_row(
    call: Call,
    scenario: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data" / "train"
    lines = ["file_name,transcription,speaker"]
    for number in range(20):
        name = f"{'mf'[number % 2]}{number}.wav"
        _record(folder / name, number)
        lines.append(",".join((name, '"Stop" he said' if number == 4 else "turn it on", name[0])))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    scenario()

    status, _, error = call("run", "scn.toml", "--output", "out")
    assert (status, error.count("metadata.csv:6")) == (1, 1)
    assert call("run", "scn.toml", "--skip-bad", "--output", "out")[0] == 0

    told = json.loads((tmp_path / "out" / "introductions.jsonl").read_text())
    assert sum(told["skipped"].values()) == 1
    status, said, _ = caller("zo-asr-data", data_cli.main, monkeypatch, capsys)("check", "data")
    assert said.splitlines()[0].startswith("train (audiofolder): 19 recordings")
    assert "  1 cannot be used:" in said.splitlines()


def test_a_speaker_whose_recordings_are_all_empty(call: Call, scenario: Callable[..., Path], tmp_path: Path) -> None:
    _plain(tmp_path / "data")
    with (tmp_path / "data" / "train" / "metadata.csv").open("a") as table:
        table.write("m3/0000.wav,One,m3\nm3/0001.wav,Two,m3\n")
    (tmp_path / "data" / "train" / "m3").mkdir()
    for name in ("0000.wav", "0001.wav"):
        (tmp_path / "data" / "train" / "m3" / name).write_bytes(b"")
    scenario(devices=3)

    status, _, error = call("run", "scn.toml", "--output", "bad")
    assert (status, error.count("'0000.wav' has no bytes"), error.count("'0001.wav' has no bytes")) == (1, 1, 1)
    assert call("run", "scn.toml", "--skip-bad", "--output", "out")[0] == 0
    assert json.loads((tmp_path / "out" / "rounds.jsonl").read_text())["answered"] == 2


def test_recordings_that_were_cut_short_are_named(call: Call, scenario: Callable[..., Path], tmp_path: Path) -> None:
    _plain(tmp_path / "data")
    wanted = []
    for path in sorted((tmp_path / "data").rglob("*.wav")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        wanted.append(f"'{path.name}' ends after {len(whole) // 3} of {len(whole)} bytes")
    scenario()

    status, _, error = call("run", "scn.toml", "--output", "out")

    assert (status, len(wanted)) == (1, 4)
    for words in wanted:
        assert words in error


def test_another_number_of_devices(call: Call, scenario: Callable[..., Path], tmp_path: Path) -> None:
    _plain(tmp_path / "data")
    scenario(devices=3)

    status, _, error = call("run", "scn.toml", "--output", "out")

    assert status == 1
    for words in ("3 devices were asked for, but the data has 2 values of speaker", "devices in [simulation]"):
        assert words in error


def test_the_home_folder(
    call: Call, scenario: Callable[..., Path], tmp_path: Path, tiny_wav2vec2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _plain(tmp_path / "home" / "base")
    shutil.copytree(tiny_wav2vec2, tmp_path / "home" / "ctc")
    scenario(model=Path("~/ctc"), data="~/base", more='output = "~/there"\n')

    assert call("run", "scn.toml")[0] == 0

    assert (tmp_path / "home" / "there" / "result.json").exists()
    assert not (tmp_path / "~").exists()


def test_tokens_of_several_characters(
    call: Call, scenario: Callable[..., Path], tmp_path: Path, tiny_wav2vec2: Path
) -> None:
    _plain(tmp_path / "data")
    model = tmp_path / "multichar"
    shutil.copytree(tiny_wav2vec2, model)
    vocabulary = json.loads((model / "vocab.json").read_text())
    joined = dict(zip("ABCDEF", ("AA", "CH", "SH", "TH", "EH", "NG"), strict=True))
    (model / "vocab.json").write_text(json.dumps({joined.get(token, token): at for token, at in vocabulary.items()}))
    scenario(model=model)

    status, _, error = call("run", "scn.toml", "--output", "out")

    assert status == 0, error
    told = json.loads((tmp_path / "out" / "rounds.jsonl").read_text())["told"]
    assert len(told) == 2 and all("that the model's vocabulary lacks: " in word for word in told.values()), told


def test_a_base_model_with_a_nan(call: Call, scenario: Callable[..., Path], tmp_path: Path, tiny_whisper: Path) -> None:
    _plain(tmp_path / "data")
    model = tmp_path / "w-nan"
    shutil.copytree(tiny_whisper, model)
    weights = load_file(model / "model.safetensors")
    weights["model.encoder.layers.0.fc1.bias"][0] = np.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    scenario(model=model)

    status, _, error = call("run", "scn.toml", "--output", "out")

    assert (status, "model.encoder.layers.0.fc1.bias" in error) == (1, True), error
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, {"bos_token_id": 50257, "decoder_start_token_id": 50257, "max_length": 448}])
def test_a_whisper_without_a_whole_generation_config(
    call: Call,
    scenario: Callable[..., Path],
    tmp_path: Path,
    whisper_dir: Path,
    kept: dict[str, int] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _plain(tmp_path / "data")
    model = write_tiny_whisper(whisper_dir, tmp_path / "w-nogen", whole_vocabulary=True)
    (model / "generation_config.json").unlink()
    if kept is not None:
        (model / "generation_config.json").write_text(json.dumps(kept))
    scenario(model=model)

    status, _, error = call("run", "scn.toml", "--output", "out")
    assert status == 0, error
    adapt = caller("zo-asr-adapt", adapt_cli.main, monkeypatch, capsys)
    one = tmp_path / "data" / "train" / "m1" / "0000.wav"
    status, _, error = adapt(one, "--model", model, "--steps", 1, "--queries", 2)
    assert "Traceback" not in error and "AttributeError" not in error
    assert status == 0, error


def test_other_directions_of_a_run_that_goes_on(call: Call, scenario: Callable[..., Path], tmp_path: Path) -> None:
    _plain(tmp_path / "data")
    scenario()
    assert call("run", "scn.toml", "--output", "out")[0] == 0
    ledger = (tmp_path / "out" / "ledger.zo").read_bytes()

    more = ("num-server-rounds=2", "resume=true", "directions=shared")
    status, _, error = call("run", "scn.toml", "--output", "out", *(word for each in more for word in ("--set", each)))

    assert status == 1
    assert "directions is 'independent' in the ledger, 'shared' was asked" in error
    assert (tmp_path / "out" / "ledger.zo").read_bytes() == ledger


def test_the_usual_command_converts_an_exported_model(tiny_whisper: Path, tmp_path: Path) -> None:
    export_model(*load_model(str(tiny_whisper)), tmp_path / "model")

    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ct2-transformers-converter")), "--model", "model",
            "--output_dir", "ct2", "--copy_files", "tokenizer.json", "preprocessor_config.json",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert {"model.bin", "preprocessor_config.json"} <= {path.name for path in (tmp_path / "ct2").iterdir()}
