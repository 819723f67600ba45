"""Files have at most 400 lines and functions at most 50, generated code apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("zo_common", "client", "server", "train", "simulations", "benchmarks")
MOST_LINES, MOST_IN_A_FUNCTION = 400, 50


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in (ROOT / folder).rglob("*.py") if "_pb2" not in path.name)


def test_no_file_is_long() -> None:
    long = [str(path) for path in sources(*PACKAGES, "tests") if len(path.read_text().splitlines()) > MOST_LINES]

    assert long == []


def test_no_function_is_long() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_IN_A_FUNCTION
    ]

    assert long == []
