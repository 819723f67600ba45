"""The recipes of CONTRIBUTING.md, performed: its own code, put where it says, on a copy of the sources."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_ctc import noise_waves, write_tiny_ctc
from tiny_models import WAVE_CTC, write_ctc
from transformers.models.auto import modeling_auto

from client.adapt.adapter import Adapter, AdaptSettings
from zo_common.errors import UnsupportedModel
from zo_common.models.ctc.loss import CTCLoss
from zo_common.models.ctc.text import CTCVocabulary
from zo_common.models.load import load_model
from zo_common.speech.model_kinds import speech_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))

LAYOUT = """
import json, sys
from pathlib import Path
from zo_common.speech.layouts import LAYOUTS
from zo_common.speech.manifest import read_manifest
texts = [utterance.text for utterance in read_manifest(sys.argv[1], split="train").utterances]
print(json.dumps([[layout.NAME for layout in LAYOUTS][-2:], texts]))
"""
RULE = """
import json
import numpy as np
from zo_common.aggregation.mean import ClientScalars
from zo_common.config.run import RunConfig
config = RunConfig(model="m", data="d", aggregation="midrange", directions="shared", weighting="uniform", min_replies=3)
replies = [ClientScalars(i, 7, 1, np.array([row], np.float32)) for i, row in enumerate([[1, 9], [2, -5], [6, 0]])]
(made,) = config.aggregator.aggregate(replies, -2.0)
(turned,) = config.aggregator.aggregate(replies[::-1], -2.0)
print(json.dumps([made.coefficients.tolist(), turned.coefficients.tobytes() == made.coefficients.tobytes()]))
"""
OBJECTIVE = """
import json, sys
import numpy as np
from zo_common import EstimatorConfig, LatticeState, RunConfig, load_model, run_local_steps
from zo_common.models.ctc.loss import DoubtLoss
from zo_common.speech.loss_settings import LossSettings
from zo_common.speech.model_kinds import trainable
config = RunConfig(model=sys.argv[1], data="d", objective="doubt", learning_rate=0.1)
speech = trainable(load_model(config.model), config)
reader = speech.reader()
waves = [np.sin(np.arange(n) / 9).astype(np.float32) / 2 for n in (16000, 12000)]
batch = reader.recordings(tuple(map(reader.of_wave, waves)), ()).batch([0, 1])
loss = speech.losses(None, LossSettings("doubt"), "float32")(batch)
state = LatticeState(speech.model, "norms")
base = state.checksum()
during = []
estimator = EstimatorConfig(num_queries=2)
run_local_steps(state, lambda _: loss, 1, 2, estimator, 0.1, on_step=lambda *_: during.append(state.checksum()))
found = {
    "needs_text": config.needs_text, "is_doubt": isinstance(loss, DoubtLoss), "losses": loss().tolist(),
    "moved": during[0] != base, "back": state.checksum() == base,
}
print(json.dumps(found))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of `zo_common`."""
    shutil.copytree(ROOT / "zo_common", tmp_path / "zo_common", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    """Replace what is there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def run(copy: Path, script: str, *arguments: str) -> Any:
    """Run a script on the copied sources, and return the JSON that it prints last."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_layout(copy: Path) -> None:
    (copy / "zo_common/speech/layouts/paired.py").write_text(CODE["zo_common/speech/layouts/paired.py"])
    index = copy / "zo_common/speech/layouts/__init__.py"
    edit(index, "librispeech, nemo, saved\n", "librispeech, nemo, paired, saved\n")
    edit(index, "nemo, bare)", "nemo, paired, bare)")
    speech = copy / "speech"
    speech.mkdir()
    for name, text in (("0001", "an tan\n"), ("0002", "two cats")):
        (speech / f"{name}.wav").touch()
        (speech / f"{name}.txt").write_text(text)

    assert run(copy, LAYOUT, str(speech)) == [["paired", "a table"], ["an tan", "two cats"]]


def test_an_aggregation_rule(copy: Path) -> None:
    path = copy / "zo_common/aggregation/robust.py"
    edit(path, "_SHARED_RULES: dict", CODE["zo_common/aggregation/robust.py"] + "\n\n_SHARED_RULES: dict")
    edit(path, '"sign-vote"]', '"sign-vote", "midrange"]')
    edit(path, "MultiKrum, SignVote)", "MultiKrum, SignVote, Midrange)")

    assert run(copy, RULE) == [[[3.5, 2.0]], True]


@pytest.mark.slow
def test_an_objective(copy: Path) -> None:
    with (copy / "zo_common/models/ctc/loss.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + CODE["zo_common/models/ctc/loss.py"])
    edit(copy / "zo_common/config/sections.py", '"self-training"]', '"self-training", "doubt"]')
    kind = copy / "zo_common/speech/ctc_model.py"
    edit(kind, 'objectives = ("supervised", "suta", "entropy")', 'objectives = ("supervised", "suta", "doubt")')
    edit(kind, "AdaptationLoss, CTCBatch, CTCLoss", "AdaptationLoss, CTCBatch, CTCLoss, DoubtLoss")
    branch = '        if settings.objective == "supervised":\n'
    made = "            return lambda batch: DoubtLoss(self.model, batch, precision)\n"
    edit(kind, branch, f'        if settings.objective == "doubt":\n{made}{branch}')

    found = run(copy, OBJECTIVE, str(write_tiny_ctc(copy / "model")))

    assert (found["needs_text"], found["is_doubt"], found["moved"], found["back"]) == (False, True, True, True)
    assert len(found["losses"]) == 2
    assert all(0 < loss < 1 for loss in found["losses"])


class NewConfig(transformers.Wav2Vec2Config):
    """Of a class that a release of transformers may bring."""

    model_type = "new-wave"


class NewForCTC(transformers.Wav2Vec2ForCTC):
    """Such a class: its input is squared, which no other class does."""

    config_class = NewConfig

    def forward(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **rest: object) -> object:
        return super().forward(input_values.square(), attention_mask, **rest)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> str:
    """The class as a package of its own registers it; returns its type, which the stand-ins then know."""
    kind = NewConfig.model_type
    transformers.AutoConfig.register(kind, NewConfig, exist_ok=True)
    transformers.AutoModelForCTC.register(NewConfig, NewForCTC, exist_ok=True)
    monkeypatch.setattr("tiny_models.WAVE_CTC", (*WAVE_CTC, kind))
    return kind


def test_a_class_with_a_ctc_head(registered: str, tmp_path: Path) -> None:
    loaded = load_model(str(write_ctc(registered, tmp_path)))
    speech = speech_model(loaded)
    assert type(loaded.model) is NewForCTC and speech.name == "CTC"
    reader, vocabulary = speech.reader(), CTCVocabulary(speech.processor.tokenizer, speech.model.config.vocab_size)
    labels = [vocabulary.labels(text)[0] for text in ("an tan", "two cats")]
    batch = reader.recordings(tuple(map(reader.of_wave, noise_waves(20000, 20000), labels)), ()).batch([0, 1])

    with torch.inference_mode():
        ours = CTCLoss(speech.model, batch)() * torch.tensor([len(row) for row in labels])
        speech.model.config.ctc_loss_reduction = "sum"
        own = float(speech.model(batch.values, labels=batch.labels).loss)

    assert float(ours.sum()) == pytest.approx(own, rel=1e-5)
    adapter = Adapter(loaded, AdaptSettings(steps=1, num_queries=2))
    assert adapter.adapt(noise_waves(16000)[0]).reached != adapter.base_checksum
    assert adapter.state.checksum() == adapter.base_checksum


class MyModel(NewForCTC):
    """The same class with a name that does not say what it is."""


def test_a_registered_class_may_have_any_name(registered: str, tmp_path: Path) -> None:
    transformers.AutoModelForCTC.register(NewConfig, MyModel, exist_ok=True)
    model = write_ctc(registered, tmp_path)
    assert json.loads((model / "config.json").read_text())["architectures"] == ["MyModel"]

    assert type(load_model(str(model)).model) is MyModel


def test_a_class_that_is_not_registered_is_refused(
    registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_ctc(registered, tmp_path))
    monkeypatch.delitem(modeling_auto.MODEL_FOR_CTC_MAPPING._extra_content, NewConfig)

    with pytest.raises(UnsupportedModel, match="'new-wave' model, supported are"):
        load_model(model)


def test_what_the_page_names_is_there() -> None:
    """Files and folders in backticks exist, but for the module that the layout's recipe writes."""
    named = set(re.findall(r"`([\w.]+/[\w./]+)`", PAGE)) | set(re.findall(r"\]\(([\w./]+)\)", PAGE))
    missing = {name for name in named if not (ROOT / name).exists()}

    assert missing == set() and len(named) > 20
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", PAGE)) <= targets
