"""The pages are plain English: short sentences on average, one name for a thing, all pages in the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.pages.site_links import without_outside_links

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
LONGEST_MEAN = 25
LONGEST = 30
DENSE = ("CHANGELOG.md",)
"""Lists of changes, which may have longer sentences."""
# word → what the pages say in its place
WORDS = {
    "utilize": "use",
    "utilise": "use",
    "leverage": "use",
    "whilst": "while",
    "stranger": "device of another run, attacker, new user",
    "late joiner": "late device",
    "drowns": "is too small",
    "falls apart": "becomes nonsense",
    "nobody trained on": "that was not trained on",
    "holds its tongue": "is quiet",
}


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page: without headings, tables, code, filled places and the addresses of links."""
    text = re.sub(r"<!-- (\S+) -->\n.*?<!-- /\1 -->|<!--.*?-->|^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        if part.startswith(("    ", "|", "#", "![", ":::")):
            continue
        plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "Code", part))
        plain = re.sub(r"^\s*(?:[-*]|\d+\.) +", "", plain)
        yield from filter(str.strip, re.split(r'(?<=[.!?:])["”)*]*\s+(?=[A-Z(\[*"])', " ".join(plain.split())))


@pytest.mark.parametrize("name", PAGES)
def test_sentences_are_short_on_average(name: str) -> None:
    lengths = [len(sentence.split()) for sentence in sentences((ROOT / name).read_text(encoding="utf-8"))]

    assert lengths and sum(lengths) / len(lengths) <= LONGEST_MEAN


@pytest.mark.parametrize("name", [name for name in PAGES if name not in DENSE])
def test_no_sentence_is_long(name: str) -> None:
    said = sentences((ROOT / name).read_text(encoding="utf-8"))

    assert [sentence for sentence in said if len(sentence.split()) > LONGEST] == []


@pytest.mark.parametrize("name", PAGES)
def test_no_word_that_has_a_plain_one(name: str) -> None:
    said = " ".join(sentences((ROOT / name).read_text(encoding="utf-8"))).lower()

    assert {word: plain for word, plain in WORDS.items() if re.search(rf"\b{word}", said)} == {}


def test_sentences_are_told_apart() -> None:
    page = "# Title\n\nOne two. Three `four.five` [six](a.md)!\n\n- Seven\n  eight.\n\n| a | b |\n\n    code. More.\n"

    assert list(sentences(page)) == ["One two.", "Three Code [six]!", "Seven eight."]


def test_every_page_is_in_the_site_once() -> None:
    listed = list(_leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))

    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def _leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(part)


def test_links_out_of_the_site_become_text() -> None:
    page = "[a](b.md#c) [d](../README.md), ![e](../e.png) [f](https://f.org/../g) [`h`](../../h/i.py)"

    assert without_outside_links(page, "results/x.md") == (
        "[a](b.md#c) [d](../README.md), ![e](../e.png) [f](https://f.org/../g) `h`"
    )
    assert without_outside_links(page, "x.md") == "[a](b.md#c) d, ![e](../e.png) [f](https://f.org/../g) `h`"
