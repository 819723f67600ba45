"""Paths as people write them."""

from __future__ import annotations

import pytest

from zo_common.paths import home_expanded


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~/data", "/home/of-somebody/data"),
        ("~", "/home/of-somebody"),
        ("unix:~/worker.sock", "unix:/home/of-somebody/worker.sock"),
        ("~nobody-of-that-name/data", "~nobody-of-that-name/data"),
        ("openai/whisper-tiny.en", "openai/whisper-tiny.en"),
        ("a/~/b", "a/~/b"),
        ("./~", "./~"),
        ("127.0.0.1:7777", "127.0.0.1:7777"),
        ("", ""),
    ],
)
def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/of-somebody")

    assert home_expanded(path) == expected
