"""An adapted model in CTranslate2 (faster-whisper's engine): the usual command converts it, and it hears the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dialects import dialect_of

from simulations.speech.espeak import Speaker, synthesize
from zo_common import load_adapted, load_model
from zo_common.models.export import export_model
from zo_common.speech.metrics import score
from zo_common.speech.model_kinds import speech_model

UTTERANCES = (
    ("The doctor will see you in the morning.", Speaker("west-midlands", "m1")),
    ("Two small boats left the harbour before the storm.", Speaker("us", "m3")),
    ("She has been learning to play the piano since last winter.", Speaker("us", "f3")),
    ("Please call me back when you have found the keys.", Speaker("scotland", "f3")),
)


@pytest.fixture(scope="module")
def export(whisper_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper-tiny.en, adapted by a ledger, as `from_pretrained` takes it."""
    loaded = load_model(str(whisper_dir))
    ledger = dialect_of(loaded.model, 1, pattern="encoder-residual-bias", scale="unit-wide", rounds=8, size=5e-3)
    adapted = load_adapted(loaded, ledger)
    return export_model(adapted.model, adapted.processor, tmp_path_factory.mktemp("export") / "model")


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "most"), [("float16", 0.0), ("int8", 0.2)])
def test_it_hears_the_same(export: Path, tmp_path: Path, quantization: str, most: float) -> None:
    """In int8, the words of which so small a model is sure; `most` is the share of words that may be others."""
    import ctranslate2

    command = ["ct2-transformers-converter", "--model", str(export), "--output_dir", str(tmp_path / "ct2")]
    command += ["--copy_files", "tokenizer.json", "preprocessor_config.json", "--quantization", quantization]
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr

    speech = speech_model(load_model(str(export)))
    reader = speech.reader(language="en")
    examples = [reader.of_wave(synthesize(*utterance)) for utterance in UTTERANCES]
    expected = speech.transcribe(examples, language="en")
    runtime = ctranslate2.models.Whisper(str(tmp_path / "ct2"), device="cpu", intra_threads=1)
    windows = torch.stack([example.window() for example in examples]).numpy()
    prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
    found = runtime.generate(ctranslate2.StorageView.from_array(windows), [prompt] * len(examples), beam_size=1)

    decode = speech.processor.tokenizer.decode
    texts = [decode(one.sequences_ids[0], skip_special_tokens=True).strip() for one in found]
    if not most:
        assert texts == [heard.text for heard in expected]
    assert score([heard.text for heard in expected], texts, language="en").raw_wer <= most
    assert all(heard.text for heard in expected)
