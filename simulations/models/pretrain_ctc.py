"""Training of a small `Wav2Vec2ForCTC` on synthetic US English, by back-propagation: a publishable base model.

    python -m simulations.models.pretrain_ctc

Voices and sentences come from the same synthesiser and grammar as the dialect corpora; it uses no recording of a person
and no other model. The same command on the same machine gives the same model; a killed run resumes from its last
checkpoint.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

from server.run.log import write_whole
from simulations.models.ctc_base import RATE, Shape, base_model, model_card, model_processor, save_small
from simulations.speech.augment import vary
from simulations.speech.corpus import Corpus, CorpusConfig, write_corpus
from zo_common.binary.durable import write_durably
from zo_common.cli import run_typer
from zo_common.directions.seeds import fold_in
from zo_common.errors import ConfigError
from zo_common.models.compute import autocast, resolve_precision
from zo_common.models.ctc.forward import ctc_logits
from zo_common.models.ctc.loss import CTCBatch, blank_of, ctc_batch
from zo_common.models.ctc.objectives import ctc_losses
from zo_common.models.ctc.text import ctc_labels
from zo_common.models.ctc.transcribe import transcribe_waves
from zo_common.models.load import load_model
from zo_common.models.objectives import IGNORE
from zo_common.speech.audio import decode
from zo_common.speech.evaluation import evaluate
from zo_common.speech.manifest import Utterance, read_manifest
from zo_common.speech.metrics import score
from zo_common.speech.model_kinds import speech_model
from zo_common.speech.recordings import read_speech

# variants that sound like people; the last ones are kept for testing
TRAIN_SPEAKERS = (
    *("m1", "m2", "m3", "m4", "m5", "m7", "f1", "f2", "f3", "f5", "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis"),
    *("Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen"),
    *("Reed", "adam", "anika", "antonio", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma"),
    *("gustave", "ian", "iven", "john", "linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul"),
)
DEV_SPEAKERS = ("pedro", "quincy")
TEST_SPEAKERS = ("m6", "f4", "m8", "rob", "steph", "travis", "victor", "zac")
PRETRAINED = Path(__file__).parent / "pretrained"
CHECKPOINT = "checkpoint.pt"
CURVE = "curve.jsonl"
MOST_GRADIENT = 1.0
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Recipe:
    """Training settings; a checkpoint must match all of them.

    Attributes:
        utterances: for each training speaker.
        speakers: number of `TRAIN_SPEAKERS` used.
        warmup: fraction of the steps in which the learning rate rises; then it decays as a cosine.
        stretch, colour: strength of augmentation at each use (`simulations.speech.augment`), since there are only a
            few dozen voices.
        precision: of matrix products.
    """

    seed: int = 0
    steps: int = 2200
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    speakers: int = len(TRAIN_SPEAKERS)
    utterances: int = 80
    test_utterances: int = 160
    stretch: float = 0.2
    colour: float = 6.0
    precision: str = "float32"
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "utterances", "test_utterances"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1")
        if not 1 <= self.speakers <= len(TRAIN_SPEAKERS):
            raise ConfigError(f"speakers is {self.speakers}, expected 1 … {len(TRAIN_SPEAKERS)}")
        if min(self.stretch, self.colour) < 0:
            raise ConfigError(f"stretch is {self.stretch}, colour {self.colour}: expected 0 or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning-rate is {self.learning_rate}, expected a positive number")

    @property
    def corpus(self) -> CorpusConfig:
        """The corpus for training and evaluation."""
        return CorpusConfig(
            accent="us",
            seed=self.seed,
            train_speakers=TRAIN_SPEAKERS[: self.speakers],
            dev_speakers=DEV_SPEAKERS,
            test_speakers=TEST_SPEAKERS,
            utterances_per_speaker=self.utterances,
            dev_utterances=max(len(DEV_SPEAKERS), self.test_utterances // 4),
            test_utterances=max(len(TEST_SPEAKERS), self.test_utterances),
            rate_range=(140, 190),
            pitch_range=(30, 70),
            lead_seconds=0.2,
            tail_seconds=0.15,
        )

    @property
    def digest(self) -> str:
        """Digest that identifies the recipe in a checkpoint."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


class Batches:
    """Batches of each step, determined by the seed; a batch holds utterances of similar length.

    In the first epoch the shortest come first: alignments are found on short utterances before long ones.
    """

    def __init__(self, utterances: tuple[Utterance, ...], size: int, seed: int) -> None:
        self._seed = seed
        # PCM: the size of a file is its length
        order = sorted(range(len(utterances)), key=lambda i: (Path(str(utterances[i].audio)).stat().st_size, i))
        cut = [order[start : start + size] for start in range(0, len(order), size)]
        self._batches = [[utterances[i] for i in batch] for batch in cut]

    def at(self, step: int) -> list[Utterance]:
        """Return the batch of a step, from 0."""
        epoch, place = divmod(step, len(self._batches))
        if epoch:
            place = int(np.random.default_rng(fold_in(self._seed, epoch)).permutation(len(self._batches))[place])
        return self._batches[place]


class Pretraining:
    """Model, optimiser and number of steps done; `folder` holds the checkpoint and the learning curve."""

    def __init__(self, recipe: Recipe, corpus: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.processor = model_processor(folder)
        self.model: Any = base_model(recipe.shape, self.processor, recipe.seed)
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
        self.batches = Batches(read_manifest(str(corpus), split="train").utterances, recipe.batch_size, recipe.seed)
        self.step, self.seconds = 0, 0.0
        self._resume()

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        found = torch.load(path, weights_only=True)
        if found["digest"] != self.recipe.digest:
            raise ConfigError(f"{path} is of another recipe: repeat that command, or name another output")
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.step, self.seconds = found["step"], found["seconds"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        buffer = io.BytesIO()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": self.step, "seconds": self.seconds, "digest": self.recipe.digest}, buffer)
        write_durably(self.folder / CHECKPOINT, buffer.getvalue())

    def advance(self) -> float:
        """Run one step of AdamW; return the loss in nats per character. Randomness depends only on seed and step."""
        started = time.monotonic()
        torch.manual_seed(fold_in(self.recipe.seed, self.step) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.step)
        self.model.train()
        loss = self._losses(self._batch(self.batches.at(self.step))).mean()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), MOST_GRADIENT)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.monotonic() - started
        return float(loss.detach())

    def _batch(self, utterances: list[Utterance]) -> CTCBatch:
        classes = self.model.config.vocab_size
        labels = [ctc_labels(self.processor.tokenizer, u.text, classes) for u in utterances]
        drawn = np.random.Generator(np.random.PCG64(fold_in(self.recipe.seed, self.step)))
        varied = [vary(decode(u.audio), RATE, drawn, self.recipe.stretch, self.recipe.colour) for u in utterances]
        return ctc_batch(self.processor.feature_extractor, varied, labels)

    def _losses(self, batch: CTCBatch) -> torch.Tensor:
        assert batch.labels is not None
        with autocast(self.recipe.precision, batch.values.device):
            logits, frames = ctc_logits(self.model, batch.values, batch.lengths)
        lengths = (batch.labels != IGNORE).sum(dim=1)
        return ctc_losses(logits.float(), frames, batch.labels, lengths, blank_of(self.model))

    @torch.no_grad()
    def judge(self, corpus: Path, split: str) -> float:
        """Return the word error rate on a split."""
        self.model.eval()
        utterances = read_manifest(str(corpus), split=split).utterances
        waves = [decode(u.audio) for u in utterances]
        return score([u.text for u in utterances], transcribe_waves(self.model, self.processor, waves)).wer


def train(recipe: Recipe, corpus: Path, folder: Path, every: int, minutes: float) -> Pretraining:
    """Train to the end, or for `minutes` (0: no limit), with a checkpoint and a line of the curve `every` steps.

    Lines of the curve that a killed run wrote after its last checkpoint are dropped.
    """
    run = Pretraining(recipe, corpus, folder)
    path = folder / CURVE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row["step"] <= run.step]
    losses: list[float] = []
    deadline = time.monotonic() + minutes * 60 if minutes else math.inf
    began = run.step, run.seconds
    while run.step < recipe.steps and time.monotonic() < deadline:
        losses.append(run.advance())
        if run.step - began[0] == 10:
            left = (recipe.steps - run.step) * (run.seconds - began[1]) / 10
            console.print(f"about {left / 60:.0f} min for the {recipe.steps - run.step} steps that are left")
        if run.step % every and run.step < recipe.steps:
            continue
        row = {"step": run.step, "loss": sum(losses) / len(losses), "seconds": round(run.seconds, 1)}
        row["dev_wer"] = run.judge(corpus, "dev")
        losses.clear()
        run.save()
        rows.append(row)
        write_whole(path, "".join(json.dumps(r) + "\n" for r in rows))
        left = run.seconds / run.step * (recipe.steps - run.step) / 60
        console.print(
            f"step {run.step}/{recipe.steps}: loss {row['loss']:.3f} nats a character, dev WER {row['dev_wer']:.1%}, "
            f"{run.seconds / 60:.1f} min, about {left:.0f} min left"
        )
    if run.step < recipe.steps:
        run.save()
    return run


def _command(recipe: Recipe) -> str:
    """Return the command line that trains with this recipe."""
    names = ("steps", "batch_size", "learning_rate", "speakers", "utterances", "test_utterances", "stretch", "colour")
    options = {name.replace("_", "-"): getattr(recipe, name) for name in (*names, "seed", "precision")}
    options |= {"layers": recipe.shape.layers, "width": recipe.shape.width}
    return " ".join(["python -m simulations.models.pretrain_ctc", *(f"--{k} {v}" for k, v in options.items())])


def finish(run: Pretraining, corpus: Corpus, output: Path, command: str) -> float:
    """Save the model in float16, evaluate the saved model on unseen speakers, write its card; return the test WER."""
    save_small(run.model, run.processor, output)
    speech = speech_model(load_model(str(output)))
    scores = evaluate(speech, read_speech(str(corpus.directory), speech.reader(), split="test")).scores
    curve = [json.loads(line) for line in (run.folder / CURVE).read_text().splitlines()]
    parts = {
        "command": command,
        "recipe": {k: v for k, v in asdict(run.recipe).items() if k != "shape"},
        "shape": asdict(run.recipe.shape),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "minutes": run.seconds / 60,
        "hours": corpus.seconds["train"] / 3600,
        "test": (scores.wer, scores.cer, scores.utterances, TEST_SPEAKERS),
        "curve": curve,
    }
    (output / "README.md").write_text(model_card(**parts), encoding="utf-8")
    return scores.wer


app = typer.Typer(add_completion=False)


@app.command()
def pretrain(
    output: Annotated[Path, typer.Option(help="Directory of the model to write.")] = PRETRAINED / "wav2vec2-tiny-us",
    corpus: Annotated[Path, typer.Option(help="Where the speech is synthesised, or reused.")] = Path("data/pretrain"),
    work: Annotated[Path, typer.Option(help="Folder of checkpoint and curve.")] = Path("results/pretrain-ctc"),
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = Recipe.steps,
    batch_size: Annotated[int, typer.Option(help="Utterances a step.")] = Recipe.batch_size,
    learning_rate: Annotated[float, typer.Option(help="The highest one.")] = Recipe.learning_rate,
    speakers: Annotated[int, typer.Option(help="Training speakers.")] = Recipe.speakers,
    utterances: Annotated[int, typer.Option(help="Utterances of each training speaker.")] = Recipe.utterances,
    test_utterances: Annotated[int, typer.Option(help="Utterances of the test split.")] = Recipe.test_utterances,
    stretch: Annotated[float, typer.Option(help="How far voices are stretched, as a share.")] = Recipe.stretch,
    colour: Annotated[float, typer.Option(help="How far voices are filtered, in dB.")] = Recipe.colour,
    layers: Annotated[int, typer.Option(help="Transformer layers.")] = Shape.layers,
    width: Annotated[int, typer.Option(help="Width of the transformer; a multiple of 64.")] = Shape.width,
    seed: Annotated[int, typer.Option(help="Of weights, speech and order.")] = Recipe.seed,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto.")] = "auto",
    every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    minutes: Annotated[float, typer.Option(help="Stop after so long; the same command goes on. 0: no limit.")] = 0.0,
) -> None:
    """Synthesise the speech, train the model, and write it with its card."""
    recipe = Recipe(
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        speakers=speakers,
        utterances=utterances,
        test_utterances=test_utterances,
        stretch=stretch,
        colour=colour,
        precision=resolve_precision(precision, torch.device("cpu")),
        shape=Shape(width=width, layers=layers),
    )
    if every < 1:
        raise ConfigError(f"every is {every}, expected at least 1")
    work.mkdir(parents=True, exist_ok=True)
    speech = write_corpus(corpus, recipe.corpus)
    console.print(f"{speech.utterances['train']} utterances, {speech.seconds['train'] / 3600:.1f} h")
    run = train(recipe, speech.directory, work, every, minutes)
    if run.step < recipe.steps:
        console.print(f"stopped after step {run.step}: the same command goes on")
        return
    wer = finish(run, speech, output, _command(recipe))
    console.print(f"wrote {output}, WER {wer:.1%} on unseen speakers")


main = run_typer(app)

if __name__ == "__main__":
    main()
