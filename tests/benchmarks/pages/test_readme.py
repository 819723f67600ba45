"""Pages are filled between their marks, and a page that lacks a mark is an error."""

from __future__ import annotations

import pytest

from benchmarks.pages.readme import BLOCKS, COST, PAGES, ROOT, cost_block, demo_block, fill, seeds_block


def test_marked_places_are_replaced_and_nothing_else() -> None:
    page = "a\n<!-- x -->\nold\n\nlines\n<!-- /x -->\nb <!-- y -->3<!-- /y --> c <!-- y --><!-- /y -->\n"

    filled = fill(page, {"x": lambda: r"new \1 line"}, {"y": lambda: "4"})

    assert filled == "a\n<!-- x -->\nnew \\1 line\n<!-- /x -->\nb <!-- y -->4<!-- /y --> c <!-- y -->4<!-- /y -->\n"
    assert fill(filled, {"x": lambda: r"new \1 line"}, {"y": lambda: "4"}) == filled


def test_a_page_without_the_place_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no place for z"):
        fill("text", {"z": lambda: "1"}, {})


@pytest.mark.parametrize("name", PAGES)
def test_every_mark_of_the_pages_is_filled_by_something(name: str) -> None:
    blocks, inline = PAGES[name]
    text = (ROOT / name).read_text()

    marks = {part.split(" -->")[0] for part in text.split("<!-- ")[1:] if not part.startswith("/")}

    assert marks == {*blocks, *inline}


MADE = {**BLOCKS, **COST, "cost": cost_block, "full-demo": demo_block, "seeds": seeds_block}


@pytest.mark.parametrize("name", MADE)
def test_the_committed_results_have_every_number_of_readme_and_costs(name: str) -> None:
    try:
        assert MADE[name]()
    except FileNotFoundError as error:
        pytest.skip(f"not measured: {error.filename}")


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_demo_is_shortened_and_its_lines_are_printed_ones() -> None:
    printed, shown = demo_block().splitlines(), BLOCKS["demo"]().splitlines()

    assert shown.count("    …") == 2 and len(shown) < len(printed) / 2
    assert [line for line in shown if line != "    …" and line not in printed] == []
    assert shown[0] == printed[0] and shown[-1].startswith("    └")
    assert [line.split(":")[0].split("/")[0] for line in shown if "B up" in line] == ["    round 1", "    round 32"]
