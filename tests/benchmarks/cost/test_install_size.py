"""The size of an installation: bytes by package, and the sentences that the docs make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cost import install_size


def _package(site: Path, name: str, size: int) -> None:
    (site / name).mkdir()
    (site / name / "module.py").write_bytes(b"#" * size)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{name}/module.py,,\n{name}/gone.py,,\n")


def test_bytes_are_those_of_each_packages_files(tmp_path: Path) -> None:
    _package(tmp_path, "small_one", 10)
    _package(tmp_path, "large", 5000)

    assert install_size.sizes(tmp_path) == {"small-one": 10, "large": 5000}


def test_the_docs_have_what_the_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "bytes": 1_640_400_000,
        "packages": 71,
        "extras_add": {"datasets": 271e6, "demo": 399e6},
        "largest": {"torch": 754_300_000, "scipy": 143_000_000},
    }
    (tmp_path / "install_size.json").write_text(json.dumps(row))
    monkeypatch.setattr(install_size, "RESULTS", tmp_path)

    said = install_size.text()

    assert "takes 1,640 MB in 71 packages" in said and "are torch 754, scipy 143." in said
    assert said.endswith("`datasets` adds 271 MB, and `demo` another 399 MB.")
