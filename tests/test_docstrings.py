"""The headlines of docstrings: noun phrases for modules, classes and properties, imperatives for functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("zo_common", "client", "server", "simulations", "train", "benchmarks")
CLAUSE = re.compile(r"(What|Who|Whose|Where|When|How|Why|Which)\b")
NOUN = re.compile(r"(The|A|An|All|Whether)\b")


def _headlines() -> Iterator[tuple[str, bool, str]]:
    """Yield place, whether it is a function, and first line of each docstring."""
    for path in sorted(found for package in PACKAGES for found in (ROOT / package).rglob("*.py")):
        if "_pb2" in path.name:  # generated
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(module):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                function = isinstance(node, ast.FunctionDef) and not _is_property(node)
                yield f"{path.relative_to(ROOT)}:{node.body[0].lineno}", function, text.splitlines()[0]


def _is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(each) or _is_setter(each) for each in node.decorator_list)


def _is_setter(decorator: ast.expr) -> bool:
    """Return whether a decorator makes a property's setter."""
    return isinstance(decorator, ast.Attribute) and decorator.attr == "setter"


def test_no_headline_is_a_clause() -> None:
    assert [f"{place}: {line}" for place, _, line in _headlines() if CLAUSE.match(line)] == []


def test_a_functions_headline_says_what_it_does() -> None:
    assert [f"{place}: {line}" for place, function, line in _headlines() if function and NOUN.match(line)] == []
