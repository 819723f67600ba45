"""`zo-asr adapt AUDIO… --model M`: transcripts before and after test-time adaptation; `replay` repeats one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from zo_common.bar import working
from zo_common.cli import Threads, run_typer
from zo_common.errors import ConfigError

if TYPE_CHECKING:
    from client.adapt.adapter import Adapter, AdaptSettings
    from client.adapt.drift_guard import DriftBounds
    from client.adapt.run import Run

DEFAULT_MAX_DRIFT = 0.05


class _AdaptByDefault(TyperGroup):
    """Group in which an argument that names no command is a recording to adapt to."""

    default_command = "adapt"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_AdaptByDefault,
    help="Adapt a recogniser to each recording by itself, without its text. `zo-asr adapt AUDIO… --model M` is short "
    "for `zo-asr adapt adapt AUDIO… --model M`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Audio = Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.", show_default=False)]
Model = Annotated[str, typer.Option(help="A Whisper or CTC model: a directory or a hub id.", show_default=False)]
Convert = Annotated[bool, typer.Option("--convert", hidden=True, help="Without effect: always done.")]
MaxSeconds = Annotated[float, typer.Option(help="Maximum seconds of a recording; longer ones are refused.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps or xpu.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Steps = Annotated[int | None, typer.Option(help="Maximum steps for each utterance; default: 40, Whisper 20.")]
Queries = Annotated[int, typer.Option(help="Directions per step.")]
Rate = Annotated[float | None, typer.Option(help="For the mean over queries; by default the model family's.")]
Epsilon = Annotated[float | None, typer.Option(help="Size of a perturbation; by default the model family's.")]
Estimator = Annotated[str, typer.Option(help="leave-one-out, one-sided or two-sided.")]
Trained = Annotated[str, typer.Option(help="Preset or patterns; by default norms, of CTC models biases too.")]
Scale = Annotated[str, typer.Option(help="unit or rms: how far a direction moves each tensor.")]
Objective = Annotated[str, typer.Option(help="CTC: suta (default) or entropy. Whisper: entropy or self-training.")]
Patience = Annotated[int, typer.Option(help="Steps without progress before an early stop; 0 never stops.")]
Layout = Annotated[str, typer.Option(help="Number format of a record: float32, float16 or sign.")]
Seed = Annotated[int, typer.Option(help="Of all directions, together with the audio.")]
Batch = Annotated[int, typer.Option(help="Recordings adapted to together, as one episode.")]
Continual = Annotated[bool, typer.Option("--continual", help="Keep the adaptation from recording to recording.")]
MaxDrift = Annotated[float | None, typer.Option(help="Of --continual: maximum drift, as a share of the weights' norm.")]
Anchor = Annotated[float | None, typer.Option(help="Of --continual: share of adaptations undone each time.")]
Records = Annotated[Path | None, typer.Option(help="A new folder for the record of each adaptation.")]
Reference = Annotated[Path | None, typer.Option(help="metadata.csv with the spoken text, for word error rates.")]
TextColumn = Annotated[str, typer.Option(help="The column of its texts.")]
Language = Annotated[str, typer.Option(help="For multilingual Whisper.")]
Precision = Annotated[str, typer.Option(help="Of the objective: float32, auto, bfloat16 or float16.")]


@app.command()
def adapt(
    ctx: typer.Context,
    audio: Audio,
    model: Model,
    steps: Steps = None,
    queries: Queries = 8,
    learning_rate: Rate = None,
    epsilon: Epsilon = None,
    estimator: Estimator = "leave-one-out",
    trained_tensors: Trained = "",
    scale: Scale = "rms",
    objective: Objective = "",
    patience: Patience = 10,
    layout: Layout = "float32",
    seed: Seed = 0,
    batch: Batch = 1,
    continual: Continual = False,
    max_drift: MaxDrift = None,
    anchor: Anchor = None,
    records: Records = None,
    reference: Reference = None,
    text_column: TextColumn = "transcription",
    language: Language = "en",
    convert: Convert = False,
    max_seconds: MaxSeconds = 3600.0,
    device: Device = "auto",
    precision: Precision = "float32",
    torch_threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Print the transcript of each recording before and after adapting to it."""
    from client.adapt.run import prepare_records, read_references

    with working("starting"):
        settings = _settings(ctx.params)
    if batch < 1:
        raise ConfigError(f"batch is {batch}, expected 1 or more recordings")
    references = read_references(reference, text_column) if reference else None
    paths, problems = _recordings(audio)
    if records is not None:
        prepare_records(records)
    adapter = _adapter(model, settings, device, torch_threads)
    work = -(-len(paths) // batch) * adapter.steps + len(paths) * continual
    with _running(adapter, max_seconds, work, problems, as_json, records=records, references=references) as run:
        run.adapt(run.listen(paths) if continual else paths, batch)


def _settings(given: dict[str, Any]) -> AdaptSettings:
    """Return the settings from the options of the same names."""
    from client.adapt.adapter import AdaptSettings

    names = (
        "steps learning_rate epsilon estimator trained_tensors scale objective patience layout seed language precision"
    )
    bounds = _bounds(given["continual"], given["max_drift"], given["anchor"])
    return AdaptSettings(
        num_queries=given["queries"], continual=bounds, **{name: given[name] for name in names.split()}
    )


@app.command()
def replay(
    record: Annotated[Path, typer.Argument(help="A record that --records wrote.", show_default=False)],
    audio: Audio,
    model: Model,
    convert: Convert = False,
    max_seconds: MaxSeconds = 3600.0,
    device: Device = "auto",
    torch_threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Print the transcripts of recordings under a stored adaptation."""
    from client.adapt.adapter import settings_of
    from client.adapt.file import read_file

    file = read_file(record)
    paths, problems = _recordings(audio)
    adapter = _adapter(model, settings_of(file), device, torch_threads)
    with _running(adapter, max_seconds, len(paths), problems, as_json) as run:
        run.replay(paths, record, file)


def _recordings(audio: list[Path]) -> tuple[list[Path], list[str]]:
    from zo_common.speech.long_audio import find_recordings

    return find_recordings(audio)


def _bounds(continual: bool, max_drift: float | None, anchor: float | None) -> DriftBounds | None:
    from client.adapt.drift_guard import DriftBounds

    if continual:
        return DriftBounds(DEFAULT_MAX_DRIFT if max_drift is None else max_drift, anchor=anchor or 0.0)
    for name, value in (("max-drift", max_drift), ("anchor", anchor)):
        if value is not None:
            raise ConfigError(f"{name} is {value}, but each recording starts from the base: add --continual")
    return None


def _adapter(model: str, settings: AdaptSettings, device: str, threads: int) -> Adapter:
    with working("loading the model"):
        import torch

        from client.adapt.adapter import Adapter
        from zo_common.models.compute import choose_device
        from zo_common.models.load import load_model
        from zo_common.models.quiet import quiet_transformers

        quiet_transformers()
        if threads:
            torch.set_num_threads(threads)
        loaded = load_model(model, language=settings.language)
        loaded.model.to(choose_device(device))
        return Adapter(loaded, settings)


@contextmanager
def _running(
    adapter: Adapter, max_seconds: float, work: int, problems: list[str], as_json: bool, **others: Any
) -> Iterator[Run]:
    """Yield a run with its view; at the end show what was resampled and the error rates, and raise for failures."""
    from client.adapt.run import Reading, Run
    from client.adapt.view import View
    from zo_common.speech.conversions import counted

    with View(work, as_json=as_json) as view:
        run = Run(adapter, Reading(max_seconds), view, **{"records": None, "references": None, **others})
        run.fail(*problems)
        with counted() as changes:
            yield run
        view.note(changes.note)
        run.rates()
    if run.failures:
        raise ConfigError(f"{run.failures} of {run.failures + run.successes} could not be used, see above")


main = run_typer(app)

if __name__ == "__main__":
    main()
