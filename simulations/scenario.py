"""Scenario files in TOML: run settings, the number of devices, and their speech."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from simulations.speech.corpus import CorpusConfig
from zo_common.config.run import RunConfig, todays_name
from zo_common.errors import ConfigError


@dataclass(frozen=True)
class Scenario:
    """A simulation: `[run]` settings (see RunConfig), `[simulation]`, and optionally a `[corpus]` to synthesise.

    Attributes:
        devices: number of virtual devices; 0: one per train speaker of the corpus or the data.
        actors: number of processes that run them; 0: one per core.
    """

    name: str
    run: Mapping[str, Any] = field(default_factory=dict)
    devices: int = 0
    actors: int = 0
    corpus: CorpusConfig | None = None

    def config(self, **overrides: Any) -> RunConfig:
        """Return the run's settings; keyword arguments (snake_case) override the file."""
        chosen: dict[str, Any] = {}
        for settings in (self.run, overrides):
            chosen |= {todays_name(k).replace("_", "-"): v for k, v in settings.items()}
        return RunConfig.from_mapping(chosen)


def read_scenario(path: Path) -> Scenario:
    """Parse a scenario file.

    Raises:
        ConfigError: not readable, not TOML, or a table or key that does not exist, with the nearest valid name.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"scenario {path} cannot be read ({error.strerror}): check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"scenario {path} is not valid TOML: {error}") from None
    _known(tables, ("name", "run", "simulation", "corpus"), f"table in {path.name}")
    for name in ("run", "simulation", "corpus"):
        if not isinstance(tables.get(name, {}), dict):
            raise ConfigError(f"{name!r} in {path.name} is a value, expected a table: write [{name}]")
    simulation = tables.get("simulation", {})
    _known(simulation, ("devices", "actors"), f"key in [simulation] of {path.name}")
    for key, value in simulation.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{key} in [simulation] of {path.name} is {value!r}, expected a whole number from 0")
    corpus = None
    if "corpus" in tables:
        corpus = corpus_config(tables["corpus"], path.name)
    scenario = Scenario(
        name=str(tables.get("name", path.stem)),
        run=tables.get("run", {}),
        devices=int(simulation.get("devices", 0)),
        actors=int(simulation.get("actors", 0)),
        corpus=corpus,
    )
    scenario.config()  # report unknown keys and wrong values before the corpus is made
    return scenario


def corpus_config(table: Mapping[str, Any], where: str) -> CorpusConfig:
    """Read a corpus description from a TOML table with kebab-case keys."""
    names = [f.name.replace("_", "-") for f in fields(CorpusConfig)]
    _known(table, names, f"key in [corpus] of {where}")
    values: dict[str, Any] = {k.replace("-", "_"): tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for name, value in values.items():
        default = getattr(CorpusConfig, name)
        fits = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if isinstance(default, tuple) and isinstance(value, tuple):
            fits = all(isinstance(v, type(default[0])) for v in value) and (
                name.endswith("speakers") or len(value) == 2
            )
        if not fits:
            raise ConfigError(
                f"{name.replace('_', '-')} in [corpus] of {where} is {value!r}, expected something like {default!r}"
            )
    return CorpusConfig(**values)


def _known(table: Mapping[str, Any], names: list[str] | tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in names:
            near = get_close_matches(key, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise ConfigError(f"unknown {what}: {key!r}, {hint}")
