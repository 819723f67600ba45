"""The public names of the packages: which they are, and that a package without a use of them stays cheap."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

PUBLIC = {
    "zo_common": "load_model LatticeState Update EstimatorConfig zo_step run_local_steps Ledger read_ledger replay "
    "combine load_adapted AdaptedModel RunConfig ZOError",
    "zo_common.speech": "read_manifest read_speech score Scores",
    "zo_common.privacy": "PrivacySettings epsilon_spent noise_for",
    "client.adapt": "AdaptSettings Adapter DriftBounds",
    "train": "train RunResult train_module",
    "simulations": "Scenario run_simulation",
    "server": "Federation Events Tracker RunFacts",
}
PAGE = Path(__file__).parents[2] / "docs" / "python.md"
HEAVY = ("torch", "transformers", "flwr", "numpy", "numba", "datasets", "typer")


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names(package: str) -> None:
    module = import_module(package)
    names = PUBLIC[package].split()

    assert sorted(module.__all__) == sorted(names)
    assert {*names} <= {*dir(module)}
    for name in names:
        value = getattr(module, name)
        assert value.__name__ == name
        assert value is getattr(import_module(value.__module__), name)
        assert value.__doc__


@pytest.mark.parametrize("package", PUBLIC)
def test_another_name_is_no_attribute(package: str) -> None:
    name = "nothing"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute '{name}'"):
        getattr(import_module(package), name)


def test_importing_the_packages_imports_nothing_heavy() -> None:
    code = f"import sys, {', '.join(PUBLIC)}; print([name for name in {HEAVY} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"


def test_a_name_is_imported_at_its_first_use() -> None:
    code = "import sys; from zo_common import ZOError; assert 'torch' not in sys.modules; from zo_common import *; "
    code += "assert 'torch' in sys.modules; print(load_model.__module__, zo_step.__module__)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == ["zo_common.models.load", "zo_common.estimator.step"]


def test_the_page_names_all_of_them() -> None:
    found: dict[str, list[str]] = {}
    package = ""
    for line in PAGE.read_text().split("## Examples")[0].splitlines():
        if line.startswith("| `") or line.startswith("| |"):
            first, second = line.split("|")[1:3]
            package = first.strip().strip("`") or package
            found.setdefault(package, []).extend(name.strip().strip("`") for name in second.split(","))

    assert {name: sorted(names) for name, names in found.items()} == {
        name: sorted(names.split()) for name, names in PUBLIC.items()
    }


@pytest.mark.parametrize("package", ["zo_common", "client", "server", "simulations", "train"])
def test_the_packages_are_typed(package: str) -> None:
    assert (files(package) / "py.typed").is_file()
