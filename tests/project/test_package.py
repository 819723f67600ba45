"""The package as it is published: sdist and wheel, what is in them, and the limits of Flower's app bundles."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import filter_paths_for_publish
from flwr.supercore.constant import MAX_FILE_BYTES, MAX_FILE_COUNT, MAX_TOTAL_BYTES

ROOT = Path(__file__).parents[2]
PACKAGES = ("zo_common", "client", "server", "simulations", "train")
FOLDERS = (*PACKAGES, "benchmarks", "tests", "docs")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LARGEST_WHEEL = 8 * 2**20
NOT_INSTALLED = {"client/worker/worker.proto"}  # its generated code is


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("sources")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.nb[ci]"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(sources: Path) -> Path:
    """The folder of an sdist, and of the wheel that is built from it."""
    run("build", "--no-isolation", "--outdir", str(sources / "dist"), str(sources))
    return sources / "dist"


def run(module: str, *arguments: str) -> None:
    """Run a module; it must succeed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]


def files_of(folder: Path, *names: str) -> dict[str, Path]:
    """Path below a folder → file, of some of its folders."""
    found = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in found if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_built_files_are_what_an_index_takes(built: Path) -> None:
    files = sorted(built.iterdir())

    assert [file.name.rsplit(".", 1)[1] for file in files] == ["whl", "gz"]
    run("twine", "check", "--strict", *map(str, files))


@pytest.mark.slow
def test_the_wheel_has_all_files_of_the_packages_and_no_others(built: Path, sources: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert names == set(files_of(sources, *PACKAGES)) - NOT_INSTALLED
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"simulations/scenarios/demo.toml", "server/deploy/templates/nginx.conf"} <= names
    assert "simulations/models/pretrained/wav2vec2-tiny-us/model.safetensors" in names
    assert wheel.stat().st_size <= LARGEST_WHEEL


def test_every_package_is_listed() -> None:
    """A new top-level package would be left out of the wheel and of Flower's bundle without a word."""
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "tests"}

    assert found == set(PACKAGES)
    assert {name.rstrip("*") for name in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} == found


def test_every_extra_is_in_the_contributors_table() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| extra | for |")[1].split("\n\n")[0]
    listed = {name for line in table.splitlines()[2:] for name in re.findall(r"`([\w-]+)`", line.split("|")[1])}

    assert listed == set(PYPROJECT["project"]["optional-dependencies"])


def test_flowers_bundle_is_within_its_limits(sources: Path) -> None:
    bundle = build_fab_from_disk(sources)
    infos = zipfile.ZipFile(BytesIO(bundle)).infolist()
    names = {info.filename for info in infos}

    assert {"server/app.py", "client/app.py", "zo_common/__init__.py"} <= names
    assert len(infos) <= MAX_FILE_COUNT == 1000
    assert max(info.file_size for info in infos) <= MAX_FILE_BYTES == 2**20
    assert sum(info.file_size for info in infos) <= MAX_TOTAL_BYTES == 10 * 2**20


def test_flowers_hub_would_take_the_repository() -> None:
    """`flwr app publish` sends all sources and pages, not only the bundle's."""
    root = {path.name: path for path in ROOT.iterdir() if path.is_file()}
    sent = filter_paths_for_publish({**files_of(ROOT, *FOLDERS), **root})
    sizes = [path.stat().st_size for path in sent.values() if isinstance(path, Path)]

    assert "server/app.py" in sent and "README.md" in sent
    assert len(sizes) == len(sent) <= MAX_FILE_COUNT
    assert max(sizes) <= MAX_FILE_BYTES and sum(sizes) <= MAX_TOTAL_BYTES
    assert 0 < len(PYPROJECT["project"]["description"]) <= 200
