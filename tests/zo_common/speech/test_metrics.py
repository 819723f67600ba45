"""Word and character error rates against tables small enough to count by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_common.speech.metrics import (
    ErrorCounts,
    Scores,
    count_characters,
    count_words,
    headline_metric,
    normalizer_name,
    score,
    whisper_normalizer,
)

words = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=5).map(" ".join)
pairs = st.lists(st.tuples(words, words), max_size=6)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [  # substitutions, deletions, insertions, reference words
        ("the cat sat", "the cat sat", (0, 0, 0, 3)),
        ("the cat sat", "the hat sat", (1, 0, 0, 3)),
        ("the cat sat", "the sat", (0, 1, 0, 3)),
        ("the cat sat", "the big cat sat", (0, 0, 1, 3)),
        ("one two three four", "one too three four five", (1, 0, 1, 4)),
        ("a b c", "", (0, 3, 0, 3)),
        ("", "a b c", (0, 0, 3, 0)),
        ("", "", (0, 0, 0, 0)),
        ("  ", " \n", (0, 0, 0, 0)),
        (" the  cat ", "the cat", (0, 0, 0, 2)),
        ("Cat", "cat", (1, 0, 0, 1)),
    ],
)
def test_words_by_hand(reference: str, hypothesis: str, counts: tuple[int, int, int, int]) -> None:
    assert count_words([reference], [hypothesis]) == ErrorCounts(*counts)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("cat", "cat", (0, 0, 0, 3)),
        ("cat", "cut", (1, 0, 0, 3)),
        ("cat", "ct", (0, 1, 0, 3)),
        ("cat", "cart", (0, 0, 1, 3)),
        ("a b", "ab", (0, 1, 0, 3)),
        ("über", "uber", (1, 0, 0, 4)),
        ("", "cat", (0, 0, 3, 0)),
        ("cat", "", (0, 3, 0, 3)),
        ("", "", (0, 0, 0, 0)),
    ],
)
def test_characters_by_hand(reference: str, hypothesis: str, counts: tuple[int, int, int, int]) -> None:
    assert count_characters([reference], [hypothesis]) == ErrorCounts(*counts)


def test_counts_of_many_utterances_are_pooled_not_averaged() -> None:
    counts = count_words(["a b c d", "x", ""], ["a b c d", "y", "noise"])

    assert counts == ErrorCounts(substitutions=1, deletions=0, insertions=1, length=5)
    assert counts.errors == 2
    assert counts.rate == pytest.approx(2 / 5)


@given(pairs, st.integers(0, 6))
def test_counts_of_a_union_are_the_sum_of_its_parts(texts: list[tuple[str, str]], cut: int) -> None:
    for count in (count_words, count_characters):
        whole = count([r for r, _ in texts], [h for _, h in texts])
        parts = [count([r for r, _ in part], [h for _, h in part]) for part in (texts[:cut], texts[cut:])]

        assert parts[0] + parts[1] == whole
        assert whole.errors == sum(count([r], [h]).errors for r, h in texts)


@given(pairs)
def test_scores_add_up_too(texts: list[tuple[str, str]]) -> None:
    total = sum((score([r], [h]) for r, h in texts), Scores())

    assert total == score([r for r, _ in texts], [h for _, h in texts])
    assert total.utterances == len(texts)


@given(pairs)
def test_a_perfect_transcript_has_no_errors(texts: list[tuple[str, str]]) -> None:
    references = [r for r, _ in texts]

    assert score(references, references).wer == 0.0
    assert count_words(references, references) == ErrorCounts(length=sum(len(r.split()) for r in references))
    assert count_characters(references, references).errors == 0


def test_rates_at_the_borders() -> None:
    assert ErrorCounts().rate == 0.0
    assert ErrorCounts(insertions=3).rate == 1.0
    assert ErrorCounts(substitutions=1, insertions=3, length=2).rate == 2.0
    assert count_words([], []) == ErrorCounts()


def test_references_and_hypotheses_must_pair_up() -> None:
    for function in (count_words, count_characters, score):
        with pytest.raises(ValueError, match="zip"):
            function(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Smith's colour", "mister smith is color"),
        ("I'm going to the centre, uh, at noon!", "i am going to the center at noon"),
        ("It cost twenty-five pounds [laughter]", "it cost £25"),
        ("We won't, you can't.", "we will not you can not"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_the_normaliser_is_that_of_whisper(text: str, expected: str) -> None:
    assert whisper_normalizer()(text) == expected
    assert whisper_normalizer()(expected) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "Schöne Grüße, Herr Müller!", "schöne grüße herr müller"),
        ("fr", "C'était l'été (rires) à Paris.", "c était l été à paris"),
        ("ru", "Мой зелёный ёжик.", "мой зелёный ёжик"),
        ("hi", "मैं हिन्दी बोलता हूँ।", "मैं हिन्दी बोलता हूँ"),
        ("ar", "مَرْحَبًا، كيف حالك؟", "مَرْحَبًا كيف حالك"),
        ("th", "สวัสดีครับ", "สวัสดีครับ"),
        ("zh", "今天天气很好。", "今天天气很好"),
        ("german", "Zwölf Äpfel", "zwölf äpfel"),
        ("en-GB", "Mr. Smith's colour", "mister smith is color"),
    ],
)
def test_letters_of_other_languages_are_kept(language: str, text: str, expected: str) -> None:
    assert whisper_normalizer(language)(text).strip() == expected


def test_a_wrong_letter_is_an_error_in_its_own_language() -> None:
    assert score(["मैं हूँ"], ["मा ह"], language="hi").wer == 1.0
    assert score(["été"], ["ete"], language="fr").wer == 1.0
    assert score(["今天天气很好啊我们走吧"], ["今天天气很好啊我们走了"], language="zh").cer == pytest.approx(1 / 11)


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "rates"),
    [  # WER, CER, raw WER, raw CER, counted by hand
        # a word of four; cat → hat: 1 of 15 letters and spaces; raw, "Colour," is wrong too, by o, u and the comma
        ("en", "Colour, the cat sat", "color the hat sat", (1 / 4, 1 / 17, 2 / 4, 4 / 19)),
        ("de", "Schöne Grüße!", "schone grüße", (1 / 2, 1 / 12, 2 / 2, 4 / 13)),  # ö → o
        ("hi", "मैं हिन्दी बोलता हूँ।", "मैं हिन्दि बोलता हूँ", (1 / 4, 1 / 20, 2 / 4, 2 / 21)),  # ी → ि
        ("ar", "مَرْحَبًا، كيف حالك؟", "مرحبا كيف حالك", (1 / 3, 4 / 18, 2 / 3, 6 / 20)),  # four marks, two stops
        ("tr", "IŞIK İstanbul'da", "ışık istanbul da", (0.0, 0.0, 3 / 2, 6 / 16)),
        ("zh", "今天天气很好，我们走吧。", "今天天气很好我们走了", (1.0, 1 / 10, 1.0, 3 / 12)),
        ("ja", "今日は、いい 天気です。", "今日はいい元気です", (1.0, 1 / 9, 1.0, 4 / 12)),  # spaces count for nothing
        ("th", "สวัสดี ครับ", "สวัสดีคะ", (1.0, 3 / 10, 1.0, 4 / 11)),
    ],
)
def test_known_answers_in_languages(
    language: str, reference: str, hypothesis: str, rates: tuple[float, float, float, float]
) -> None:
    found = score([reference], [hypothesis], language=language)

    assert (found.wer, found.cer, found.raw_wer, found.raw_cer) == pytest.approx(rates)
    assert found.headline(language) == (found.cer if language in ("zh", "ja", "th") else found.wer)


@pytest.mark.parametrize(
    "language",
    [
        "zh",
        "zh-CN",
        " ZH\n",
        "zho",
        "cmn-script_simplified",
        "Chinese",
        "mandarin",
        "yue",
        "ja",
        "th",
        "lo",
        "my",
        "km",
    ],
)
def test_the_headline_of_languages_without_spaces(language: str) -> None:
    assert headline_metric(language) == "cer"


@pytest.mark.parametrize("language", ["en", "", "de", "hi", "ar", "tr", "vi", "ko", "english"])
def test_the_headline_of_others(language: str) -> None:
    assert headline_metric(language) == "wer"


@pytest.mark.parametrize("language", ["en", "", " En ", "en-GB", "eng", "English"])
def test_english_however_it_is_written(language: str) -> None:
    assert normalizer_name(language) == "Whisper's English normaliser"
    assert whisper_normalizer(language)("Mr. Colour's twenty-five") == "mister color is 25"


@pytest.mark.parametrize("language", ["tr", "tr_TR", "TURKISH", "aze", "azj-script_latin"])
def test_turkish_however_it_is_written(language: str) -> None:
    assert whisper_normalizer(language)("IŞIK İyi") == "ışık iyi"


def test_every_summary_names_its_normaliser() -> None:
    found = score(["今天"], ["今天"], language="zh").summary("zh")

    assert found == {
        "wer": 0.0,
        "cer": 0.0,
        "raw_wer": 0.0,
        "raw_cer": 0.0,
        "utterances": 1,
        "headline": "cer",
        "normalizer": "Whisper's basic normaliser, marks kept",
    }
    assert Scores().summary("en")["normalizer"] == "Whisper's English normaliser"
    assert "raw_cer" not in Scores().summary("en")  # as devices' counts come
    assert normalizer_name("tr") == "Whisper's basic normaliser, marks kept, Turkish case"


def test_scores_are_normalised_and_raw() -> None:
    found = score(["Mr. Smith's colour."], ["mister smith is color"])

    assert (found.wer, found.cer) == (0.0, 0.0)
    assert found.raw_words == ErrorCounts(substitutions=3, insertions=1, length=3)
    assert found.raw_wer == pytest.approx(4 / 3)
    assert (found.words.length, found.characters.length) == (4, 21)


def test_what_normalises_to_nothing_counts_as_nothing() -> None:
    found = score(["uh", "[music]", "yes"], ["", "", "yes"])

    assert found.words == ErrorCounts(length=1)
    assert found.raw_words == ErrorCounts(deletions=2, length=3)
    assert found.utterances == 3


def test_another_normaliser_can_be_used() -> None:
    found = score(["Grüße"], ["GRÜSSE"], normalize=str.casefold)

    assert found.wer == 0.0
    assert found.raw_wer == 1.0
