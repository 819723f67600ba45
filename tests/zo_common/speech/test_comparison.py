"""The change of an error rate: exact rates, an interval that covers the truth, groups of metadata columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zo_common.speech.comparison import (
    change_of,
    change_text,
    compare,
    compare_devices,
    error_counts,
    group_columns,
    points,
    rate_intervals,
)


def _row(where: str, errors: int, units: int, **columns: str) -> dict[str, Any]:
    return {"where": where, "errors": errors, "units": units, "columns": columns}


def test_the_interval_covers_the_true_change_as_often_as_it_says() -> None:
    """Utterances of 10 words with a word error rate of 0.3 before and 0.2 after: the change is −0.1."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        units = np.full(60, 10)
        before, after = rng.binomial(10, 0.3, 60), rng.binomial(10, 0.2, 60)
        found = change_of(before, after, units, seed)
        assert found.interval is not None
        covered += found.interval[0] <= -0.1 <= found.interval[1]

    assert 88 <= covered <= 100  # 95 in the mean, standard deviation 2


def test_pairs_are_kept_together() -> None:
    """Every utterance gets better by one word, however hard it is: nothing is uncertain about that."""
    before = np.arange(1, 31)

    found = change_of(before, before - 1, np.full(30, 40))

    assert found.interval == pytest.approx((-1 / 40, -1 / 40))
    assert (found.before, found.after) == pytest.approx((465 / 1200, 435 / 1200))
    assert found.change == pytest.approx(-1 / 40)


def test_rates_are_pooled_over_units_and_the_same_each_time() -> None:
    before, after, units = np.array([1, 0, 6]), np.array([0, 0, 3]), np.array([1, 4, 15])

    found = change_of(before, after, units)

    assert (found.utterances, found.units, found.before, found.after) == (3, 20, 7 / 20, 3 / 20)
    assert change_of(before, after, units) == found


def test_one_utterance_has_no_interval() -> None:
    assert change_of(np.array([1]), np.array([0]), np.array([2])).interval is None


def test_a_group_without_words_has_no_rate_to_divide_by() -> None:
    found = change_of(np.array([1, 0]), np.array([0, 0]), np.array([0, 0]))

    assert found.interval is not None and np.isfinite(found.interval).all()


def test_by_speaker_and_by_every_column_that_sorts_utterances() -> None:
    columns = [
        {"speaker": str(s), "accent": a, "votes": str(v), "id": f"x{n}"}
        for n, (s, a, v) in enumerate([(1, "Brummie", 2), (1, "Brummie", 0), (2, "स्कॉट", 2), (2, "स्कॉट", 0)])
    ]
    before = [_row(f"t:{n}", errors, 4, **columns[n]) for n, errors in enumerate((2, 2, 1, 1))]
    after = [_row(f"t:{n}", errors, 4, **columns[n]) for n, errors in enumerate((0, 0, 2, 1))]

    found = compare(before, after, "en", "speaker")

    assert found is not None
    assert (found["metric"], found["normalizer"], found["utterances"]) == ("wer", "Whisper's English normaliser", 4)
    assert (found["before"], found["after"], found["change"]) == (6 / 16, 3 / 16, -3 / 16)
    assert list(found["groups"]) == ["speaker", "accent"]
    scottish = found["groups"]["accent"][1]
    assert (scottish["value"], scottish["utterances"], scottish["before"], scottish["after"]) == (
        "स्कॉट",
        2,
        2 / 8,
        3 / 8,
    )
    assert found["interval"][0] <= found["change"] <= found["interval"][1]


def test_missing_values_are_a_group_and_too_many_values_are_none() -> None:
    columns = [{"gender": "female", "id": str(n) + "a"} if n % 2 else {"id": str(n) + "a"} for n in range(8)]

    assert group_columns(columns, "speaker") == ["gender"]


def test_other_utterances_are_not_compared() -> None:
    assert compare([_row("t:1", 0, 1)], [_row("t:2", 0, 1)], "en", "speaker") is None
    assert compare([], [], "en", "speaker") is None


def _sums(device: int, errors: int, units: int, utterances: int = 4) -> dict[str, int]:
    return {"device": device, "utterances": utterances, "errors": errors, "units": units}


def test_devices_are_resampled_whole() -> None:
    """Two gain a quarter of their words and two lose as much: no device is an average one, however much it says."""
    before = [_sums(device, 500, 1000) for device in range(4)]
    after = [_sums(device, 250 if device < 2 else 750, 1000) for device in range(4)]

    found = compare_devices(before, after, "en")

    assert found is not None
    assert (found["resampled"], found["devices"], found["utterances"], found["units"]) == ("devices", 4, 16, 4000)
    assert (found["before"], found["after"], found["groups"]) == (0.5, 0.5, {})
    assert found["interval"] == (-0.25, 0.25)
    assert "over devices" in found["method"] and "interval over devices −25.0" in change_text(found)


def test_devices_that_answered_once_or_have_other_speech_are_not_compared() -> None:
    before, after = [_sums(0, 5, 10), _sums(1, 5, 10), _sums(2, 5, 10)], [_sums(2, 5, 12), _sums(1, 4, 10)]

    found = compare_devices(before, after, "zh")

    assert found is not None
    assert (found["metric"], found["devices"], found["before"], found["after"]) == ("cer", 1, 0.5, 0.4)
    assert found["interval"] is None
    assert compare_devices(before, after[:1], "zh") is None
    assert compare_devices([], [], "zh") is None


def test_units_are_characters_where_there_are_no_spaces() -> None:
    assert error_counts("今天天气很好。", "今天天气不好", "zh") == (1, 6)
    assert error_counts("the cat sat", "the hat sat", "en") == (1, 3)


def test_both_rates_of_an_evaluation_have_an_interval_around_them() -> None:
    said, heard = ["the cat sat", "on the mat", "a hat"] * 20, ["the cat sat", "on a mat", "a bat"] * 20
    found = rate_intervals(said, heard, "en")

    assert set(found) == {"wer_interval", "cer_interval"}
    assert found["wer_interval"][0] < 2 / 8 < found["wer_interval"][1] < 0.4
    assert found["cer_interval"][0] < 4 / 26 < found["cer_interval"][1]
    assert rate_intervals(said[:1], heard[:1], "en") == {}


def test_a_change_in_words() -> None:
    found = change_of(np.array([4, 4]), np.array([3, 3]), np.array([10, 10])).row()

    assert change_text(found) == "40.0% → 30.0%, −10.0 points (95% interval −10.0 … −10.0)"
    assert points(0.012) == "+1.2"
