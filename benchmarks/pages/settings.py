"""Write `docs/settings.md` from the settings' metadata: `python -m benchmarks.pages.settings` after a change of them.

`--check` fails if the page is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.pages.generated import write_or_check
from train.run import ALONE
from zo_common.config.run import SETTINGS, RunConfig
from zo_common.config.sections import (
    AggregationSection,
    DataSection,
    EvaluationSection,
    FederationSection,
    MethodSection,
    ModelSection,
    PrivacySection,
    SimulationSection,
)
from zo_common.config.setting import Setting, section_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "settings.md"
SECTIONS = (
    DataSection,
    ModelSection,
    MethodSection,
    AggregationSection,
    PrivacySection,
    FederationSection,
    EvaluationSection,
    SimulationSection,
)
HEAD = """\
# Settings of a run

All settings with their defaults. They are keys of `--run-config` in `flwr run`, of `[run]` in a scenario file, of
`runs/NAME.toml` in a deployment, and of `--set key=value` in `zo-asr train`, `sim run`, `sim demo`, `server start` and
`server resume`. An unknown key is answered with the nearest valid one, a value out of range with what is expected.

`zo-asr train` has {alone} as defaults, and evaluates on a split `test` where
there is one. Without `model` it and the demo take the Whisper-tiny.en of the extra `demo`.

**Resuming.** A run that is resumed (`resume=true`) keeps every setting that the last column calls *fixed*. Another
value is refused before a device is asked, with the setting's name, both values and what to set; nothing is written.
Settings that are *free* may change. The run reports them in one line, but for `resume`, `output`, `feature-cache` and
`torch-threads`, which belong to one start or one machine. Every start adds a line to `settings.jsonl` in `output`, with
all settings and what was changed. What an older ledger does not record is not compared. `trained-tensors=auto` and
`noise-multiplier=0` take what the ledger records.

**The device's engine.** A change of a setting marked † makes a device build its model anew.
"""


def page() -> str:
    """Return the whole page."""
    return (
        "\n".join([HEAD.replace("{alone}", _alone()), *(line for cls in SECTIONS for line in _section(cls))]).rstrip()
        + "\n"
    )


def _alone() -> str:
    return " and ".join(f"`{name.replace('_', '-')}={value}`" for name, value in ALONE.items())


def _section(cls: type) -> Iterator[str]:
    name = section_of(cls)
    yield f"## {name.capitalize()}"
    yield ""
    yield (cls.__doc__ or "").strip()
    yield ""
    yield "| setting | values | default | meaning | on resume |"
    yield "|---|---|---|---|---|"
    yield from (_row(each) for each in SETTINGS if each.section == name)
    yield ""


def _row(each: Setting) -> str:
    mark = " †" if each.about.engine else ""
    doc = each.about.doc.replace("|", r"\|")
    default = _shown(each.default)
    if each.app_default != each.default:
        default = f"{default}; with `flwr run` {_shown(each.app_default)}"
    return f"| `{each.key}`{mark} | {each.values} | {default} | {doc} | {each.about.resume} |"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return "empty"
    return f"`{value}`" if isinstance(value, str) else f"{value:.15g}"


def main() -> None:
    """Write the page, or check it."""
    assert sum(cls in RunConfig.__mro__ for cls in SECTIONS) == len(SECTIONS)
    write_or_check(PAGE, page(), "benchmarks.pages.settings", "the settings")


if __name__ == "__main__":
    main()
