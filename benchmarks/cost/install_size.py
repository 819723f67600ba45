"""Bytes of an installation on a device, in a fresh environment with CPU torch, and what extras add to it.

Packages come from where pip is configured to find them; versions are those of `constraints.txt`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import RESULTS, store

NAME = "install_size"
ROOT = Path(__file__).parents[2]
EXTRAS = ("datasets", "demo")  # in this order: what each adds to those before it
_MEGABYTE = 1e6
_SHOWN = 6  # packages


def sizes(site: Path) -> dict[str, int]:
    """Return the bytes of each package of a `site-packages` folder, compiled files included."""
    found: dict[str, int] = {}
    for each in distributions(path=[str(site)]):
        paths = (Path(str(file.locate())) for file in each.files or ())
        found[each.name.lower().replace("_", "-")] = sum(path.stat().st_size for path in paths if path.is_file())
    return found


def install(environment: Path, extra: str, index: str | None) -> dict[str, int]:
    """Install the program of this checkout into an environment; return the bytes of all packages in it.

    Raises:
        CalledProcessError: pip failed, or torch is built for a GPU.
    """
    python = environment / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    if index is not None:
        subprocess.run([*pip, "torch", "--index-url", index], check=True)
    subprocess.run([*pip, f"{ROOT}[{extra}]" if extra else str(ROOT)], check=True)
    subprocess.run([str(python), "-c", "import torch; assert torch.version.cuda is None, 'not CPU torch'"], check=True)
    return sizes(next((environment / "lib").glob("python*/site-packages")))


def measure(index: str | None) -> dict[str, Any]:
    """Return bytes and number of packages of a device's installation, its packages, and what each extra adds."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        device = install(environment, "", index)
        before, extras = device, {}
        for extra in EXTRAS:
            after = install(environment, extra, None)
            extras[extra] = sum(after.values()) - sum(before.values())
            before = after
    largest = dict(sorted(device.items(), key=lambda item: -item[1]))
    return {"bytes": sum(device.values()), "packages": len(device), "extras_add": extras, "largest": largest}


def text() -> str:
    """Return the sentences of the docs."""
    found = json.loads((RESULTS / f"{NAME}.json").read_text())
    largest = list(found["largest"].items())[:_SHOWN]
    listed = ", ".join(f"{name} {_megabytes(size)}" for name, size in largest)
    added, demo = (_megabytes(found["extras_add"][extra]) for extra in EXTRAS)
    return (
        f"`pip install .` with CPU torch takes {_megabytes(found['bytes'])} MB in {found['packages']} packages; the "
        f"largest, in MB, are {listed}. The extra `datasets` adds {added} MB, and `demo` another {demo} MB."
    )


def _megabytes(size: float) -> str:
    return f"{size / _MEGABYTE:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", help="where CPU torch is, if pip does not find it first (README.md)")
    found = measure(parser.parse_args().index)
    print(f"wrote {store(NAME, found)}")


if __name__ == "__main__":
    main()
