"""The generated code is that of the service's description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_generated_files_are_up_to_date(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, "client/worker/worker.proto"],
        cwd=ROOT,
        check=True,
        timeout=60,
    )

    made = sorted(tmp_path.glob("client/worker/*"))
    assert [path.name for path in made] == ["worker_pb2.py", "worker_pb2.pyi", "worker_pb2_grpc.py"]
    for path in made:
        assert path.read_text() == (ROOT / "client" / "worker" / path.name).read_text(), (
            f"make proto: {path.name} is outdated"
        )
