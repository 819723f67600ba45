"""`zo-asr data check | convert | segment`: recordings checked before training, written in one layout, and cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from zo_common.bar import Bar
from zo_common.cli import AsJson, command_group, run_typer
from zo_common.speech.survey import Survey

app = command_group("Check recordings before training, convert and cut them.")

Source = Annotated[str, typer.Argument(help="Folder, table or hub id: see docs/data.md.", show_default=False)]
Split = Annotated[str, typer.Option(help="Only this split; by default all.")]
TextColumn = Annotated[str, typer.Option(help="Column of the transcripts.")]
By = Annotated[str, typer.Option(help="Column of the owners of the recordings.")]
NoText = Annotated[bool, typer.Option("--no-text", help="Recordings alone, for objectives without transcripts.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out unusable recordings, and count them.")]
Problems = Annotated[int, typer.Option(min=0, help="Maximum number of problems printed per split; 0 for all.")]


@app.command()
def check(
    source: Source,
    split: Split = "",
    text_column: TextColumn = "transcription",
    partition_by: By = "speaker",
    no_text: NoText = False,
    problems: Problems = 20,
    as_json: AsJson = False,
) -> None:
    """Print the usable and the unusable recordings: every recording is decoded, no model is loaded."""
    from zo_common.speech.source import read_splits
    from zo_common.speech.survey import survey

    found = read_splits(source, split, text_column, need_text=not no_text)
    total = sum(len(part.manifest.utterances) for part in found)
    surveys, done = [], 0
    with Bar("recordings", total) as bar:
        for part in found:
            surveys.append(
                survey(
                    part.manifest,
                    split=part.name,
                    layout=part.layout,
                    by=partition_by,
                    folder=part.folder,
                    on_progress=bar.after(done),
                )
            )
            done += len(part.manifest.utterances)
    if as_json:
        print(json.dumps({"source": source, "splits": [each.to_json() for each in surveys]}, ensure_ascii=False))
    else:
        for each in surveys:
            _show(each, problems)
    if not any(each.utterances for each in surveys):
        raise typer.Exit(1)


@app.command()
def convert(
    source: Source,
    output: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    split: Split = "",
    text_column: TextColumn = "transcription",
    skip_bad: SkipBad = False,
) -> None:
    """Write recordings of any layout as Hugging Face's audiofolder, cut by their times if they have some."""
    from zo_common.speech.convert import convert as write
    from zo_common.speech.source import read_splits

    found = {part.name: part.manifest for part in read_splits(source, split, text_column)}
    with Bar("recordings", sum(len(manifest.utterances) for manifest in found.values())) as bar:
        counts = write(found, output, skip_bad=skip_bad, on_progress=bar.after(0))
    for name, count in counts.items():
        listed = len(found[name].utterances) + len(found[name].left_out)
        print(f"{output / name}: {count} recordings" + (f", {listed - count} left out" if listed > count else ""))


@app.command()
def segment(
    source: Source,
    output: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    model: Annotated[str, typer.Option(help="Hub id or directory of a model for the language.")],
    language: Annotated[str, typer.Option(help="Language of the speech.")] = "en",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    split: Split = "",
    text_column: TextColumn = "transcription",
    skip_bad: SkipBad = False,
) -> None:
    """Cut recordings of more than 30 s at pauses, each piece with its own text, and write an audiofolder.

    The model decides which words are in a piece; uncertain pieces are listed and left out.
    """
    from zo_common.errors import DataError
    from zo_common.models.compute import choose_device
    from zo_common.models.load import load_model
    from zo_common.speech.convert import convert as write
    from zo_common.speech.model_kinds import speech_model
    from zo_common.speech.segment import Segmenter
    from zo_common.speech.source import read_splits
    from zo_common.speech.utterance import Manifest

    found = {part.name: part.manifest for part in read_splits(source, split, text_column)}
    problems = [problem for manifest in found.values() for problem in manifest.problems]
    if problems and not skip_bad:
        raise DataError(problems)
    loaded = load_model(model, language=language)
    loaded.model.to(choose_device(device))
    segmenter = Segmenter(speech_model(loaded), language)
    made, done = {}, 0
    with Bar("recordings", sum(len(manifest.utterances) for manifest in found.values())) as bar:
        for name, manifest in found.items():
            made[name] = segmenter.segment(manifest, bar.after(done))
            done += len(manifest.utterances)
    if not all(manifest.utterances for manifest in made.values()):
        raise DataError([problem for manifest in made.values() for problem in manifest.problems])
    counts = write({name: Manifest(manifest.utterances) for name, manifest in made.items()}, output)
    for name, count in counts.items():
        left_out = len(made[name].left_out)
        print(f"{output / name}: {count} recordings" + (f", {left_out} left out:" if left_out else ""))
        for problem in made[name].problems:
            print(f"  {problem}")


def _show(found: Survey, most: int) -> None:
    """Print a split for people."""
    print(f"{found.split} ({found.layout}): {found.utterances} recordings, {found.minutes:.1f} min")
    for line in _lines(found):
        print(f"  {line}")
    shown = found.problems if not most else found.problems[:most]
    if found.problems:
        print(f"  {found.left_out} cannot be used:" if found.left_out else "  none can be used:")
    for problem in shown:
        print(f"    {problem}")
    if len(shown) < len(found.problems):
        print(f"    … and {len(found.problems) - len(shown)} more: --problems 0 prints all")


def _lines(found: Survey) -> Iterator[str]:
    named = {name: minutes for name, minutes in found.speakers.items() if name}
    if named:
        least, most = min(named.values()), max(named.values())
        mute = [name for name, minutes in named.items() if not minutes]
        yield f"{found.by}: {len(named)}, {least:.1f} … {most:.1f} min each ({_some(list(named))})"
        if mute:
            yield f"{found.by} without a usable recording: {len(mute)} ({_some(mute)})"
    if "" in found.speakers:
        yield f"{found.by}: none of {found.speakers['']:.1f} min"
    if found.lengths is not None:
        each = found.lengths
        yield f"lengths: {each.shortest:.1f} … {each.longest:.1f} s, median {each.median:.1f} s"
    if found.scripts:
        yield "scripts: " + ", ".join(f"{name} {share:.1%}" for name, share in list(found.scripts.items())[:6])
    if found.note:
        yield found.note
    if found.unlisted:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in found.unlisted.items())
        yield f"{sum(found.unlisted.values())} recordings in the folder are in no usable row: {kinds}"


def _some(names: list[Any]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


main = run_typer(app)

if __name__ == "__main__":
    main()
