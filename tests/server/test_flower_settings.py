"""Flower accepts only run-config keys that pyproject.toml lists: it must list every setting, with its default."""

from __future__ import annotations

import tomllib
from pathlib import Path

from zo_common.config.run import RunConfig

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
CHOSEN_FOR_FLOWER = {"model", "data", "output"}


def test_every_setting_is_listed_with_its_default() -> None:
    listed = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]

    defaults = RunConfig().to_mapping()

    assert listed.keys() == defaults.keys()
    assert {k: v for k, v in listed.items() if k not in CHOSEN_FOR_FLOWER} == {
        k: v for k, v in defaults.items() if k not in CHOSEN_FOR_FLOWER
    }
    assert RunConfig.from_mapping(listed).model
