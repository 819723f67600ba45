"""Pages are filled between their marks, and a page that lacks a mark is an error."""

from __future__ import annotations

import pytest

from benchmarks.pages.readme import BLOCKS, INLINE, PAGES, ROOT, fill


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


@pytest.mark.parametrize("name", [*BLOCKS, *INLINE])
def test_the_committed_results_have_every_number_of_the_readme(name: str) -> None:
    made = {**BLOCKS, **INLINE}[name]
    try:
        assert made()
    except FileNotFoundError as error:
        pytest.skip(f"not measured: {error.filename}")
