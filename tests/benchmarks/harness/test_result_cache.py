"""Partial results of a benchmark that is stopped and goes on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.harness.result_cache import ResultCache


def test_a_result_is_measured_once_and_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "work" / "rows.jsonl"
    assert ResultCache(path)(["seed", 0], lambda: {"n": 1}) == {"n": 1}

    again = ResultCache(path)

    assert again(["seed", 0], lambda: {"n": 2}) == {"n": 1}
    assert again(["seed", 1], lambda: {"n": 2}) == {"n": 2}


def test_a_line_that_a_crash_tore_is_measured_again_and_tears_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for seed in (0, 1):
        ResultCache(path)(seed, partial(dict, n=seed))
    path.write_bytes(path.read_bytes()[:-5])

    assert ResultCache(path)(1, lambda: {"n": 7}) == {"n": 7}
    assert ResultCache(path)(0, lambda: {"n": 8}) == {"n": 0}
    assert ResultCache(path)(1, lambda: {"n": 9}) == {"n": 7}


def test_without_a_file_it_lasts_as_long_as_the_process() -> None:
    cache = ResultCache(None)
    assert [cache("x", lambda: {"n": 1}), cache("x", lambda: {"n": 2})] == [{"n": 1}, {"n": 1}]
