"""Words mended and broken, and the choice of transcripts."""

from __future__ import annotations

from typing import Any

import pytest

from server.report.transcripts import examples
from server.report.words import align, changed_words
from zo_common.speech.metrics import score


def _rows(texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"where": f"{place}.wav", "reference": reference, "hypothesis": heard}
        for place, (reference, heard) in enumerate(texts)
    ]


def test_an_alignment_tells_what_was_heard_for_each_word() -> None:
    found = align("The cat sat on the mat.", "the bat sat the big mat")

    assert found.words == ("the", "cat", "sat", "on", "the", "mat")
    assert found.instead[:3] == ("the", "bat", "sat") and found.instead[-1] == "mat"
    assert ("bat", False) in found.marked and ("mat", True) in found.marked
    assert align("", "uh yes").errors >= 1 and align("yes", "").instead == ("",)


@pytest.mark.parametrize(
    ("reference", "heard"),
    [
        ("one two three", "one three"),
        ("one two", "one one two two"),
        ("a b c d", "d c b a"),
        ("x", ""),
        ("six", "sics"),
    ],
)
def test_errors_are_those_of_the_error_rate(reference: str, heard: str) -> None:
    assert align(reference, heard).errors == score([reference], [heard]).words.errors


def test_characters_are_aligned_where_words_have_no_spaces() -> None:
    found = align("你好 世界", "你好世介", "zh")

    assert found.words == ("你", "好", "世", "界") and found.instead == ("你", "好", "世", "介")


def test_words_are_counted_where_they_turned_right_or_wrong() -> None:
    references = ["the bath is full", "a bath", "the path", "grass"]
    before = _rows(list(zip(references, ["the birth is full", "a bus", "the path", "grass"], strict=True)))
    after = _rows(list(zip(references, ["the bath is fool", "a bath", "the", "grass"], strict=True)))

    mended, broken = changed_words(before, after, "en")

    assert [(each.word, each.count, each.of) for each in mended] == [("bath", 2, 2)]
    assert mended[0].transcribed == {"birth": 1, "bus": 1}
    assert [(each.word, each.count) for each in broken] == [("full", 1), ("path", 1)]
    assert broken[1].transcribed == {"": 1}
    assert len(changed_words(before, after, "en", most=1)[1]) == 1


def test_transcripts_are_the_most_mended_the_most_broken_and_some_between() -> None:
    count = 40
    references = ["one two three four five six seven eight nine ten"] * count
    words = references[0].split()
    heard = [" ".join(words[: number % 10]) or "uh" for number in range(count)]
    before, after = _rows(list(zip(references, heard, strict=True))), _rows([(r, "one two three") for r in references])

    found = examples(before, after, "en", 12)

    changes = [each.change for each in found]
    everything = sorted(each.change for each in examples(before, after, "en", count))
    assert len(found) == 12 and changes == sorted(changes)
    assert changes[:6] == everything[:6] and changes[-3:] == everything[-3:]
    assert len({each.where for each in found}) == 12
    assert all(each.before != each.after for each in found)
    assert examples(before, before, "en") == []
