"""The files of the repository's root that are for people and for GitHub: complete, and true to the package."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
PRIVACY = [ROOT / "docs" / name for name in ("privacy.md", "guarantees.md", "limits.md")]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]


def test_the_citation_is_of_this_version_and_names_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    references = [citation["preferred-citation"], *citation["references"]]
    papers = [value["value"].removeprefix("arXiv:") for each in references for value in each["identifiers"]]

    assert citation["cff-version"] == "1.2.0" and {"title", "message", "authors", "references"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert all(each["authors"] and each["title"] and each["type"] for each in references)
    assert papers == ["2512.01267", "2305.17333", "2405.15861", "2506.09034"]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(papers[0] in page.read_text(encoding="utf-8") for page in pages)


def test_the_changelog_names_the_packages_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))

    assert PROJECT["version"] in text.split("## [Unreleased]")[1]
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\((?!https:)([^)#]+)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_a_form_is_one_that_github_accepts(name: str) -> None:
    form: dict[str, Any] = yaml.safe_load((FORMS / f"{name}.yml").read_text())
    fields = [field for field in form["body"] if field["type"] != "markdown"]

    assert form["name"] and form["description"]
    assert {field["type"] for field in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_every_result_says_how_it_was_made() -> None:
    """As CONTRIBUTING.md has it: the command stands beside the numbers."""
    rows = {path.name: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}

    assert rows and [name for name, row in rows.items() if "command" not in row] == []


def test_every_promise_of_privacy_links_to_its_test() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PRIVACY)
    tables = PRIVACY[0].read_text(encoding="utf-8").split("## Who is kept from what")[1]
    rows = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| kept from")]
    links = re.findall(r"\]\(\.\./(tests/[^)]+\.py)\)", text)

    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"\]\(\.\./tests/[^)]+\.py\)", row)] == []
    assert all(re.search(r"^\s*def test_", (ROOT / link).read_text(), re.MULTILINE) for link in links)
    assert "word on" not in text


def test_every_attack_is_on_the_page_of_what_it_is_kept_from() -> None:
    attacks = {path.name for path in (ROOT / "tests" / "attacks").glob("test_*.py")}
    pages = [*PRIVACY, ROOT / "docs" / "deployment.md"]
    linked = {name for page in pages for name in re.findall(r"\(\.\./tests/attacks/([^)]+)\)", page.read_text())}

    assert len(attacks) > 25 and linked == attacks
