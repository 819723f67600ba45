"""Real speech from Debian's packages: which prompts are used, and how they are split."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from simulations.speech import telephone_prompts
from simulations.speech.telephone_prompts import Prompt, download, read_prompts, split_prompts, write_prompts
from zo_common.errors import ConfigError
from zo_common.speech.manifest import read_manifest

LINES = """\
; Core Asterisk Sounds in Russian

good: Ваш микрофон  выключен.
colon: Введите номер: решётка
deep/one: Спасибо за звонок
short: Всего доброго
digits: Нажмите 1 чтобы выйти
beep: [ascending tones of three]
emphasis: один два (emphase) три
angle: <beep beep beep>
spelled: канал I A X
long: Очень долгая запись
absent: У этой нет записи
"""
RATE = 8000


def _packages(root: Path, lines: str = LINES, language: str = "ru") -> Path:
    """Both packages of a language as `dpkg-deb -x` leaves them, all recordings but one of a second."""
    doc = root / "usr/share/doc" / f"asterisk-core-sounds-{language}"
    sounds = root / "usr/share/asterisk/sounds" / f"{language}_RU_f_Voice"
    doc.mkdir(parents=True)
    (doc / f"core-sounds-{language}.txt.gz").write_bytes(gzip.compress(lines.encode()))
    for name in (line.partition(":")[0] for line in lines.splitlines() if ": " in line and line[0] != ";"):
        if name != "absent":
            path = sounds / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = np.sin(np.arange(RATE * (31 if name == "long" else 1)) / 9) / 2
            soundfile.write(path, wave, RATE, subtype="PCM_16")
    return root


def test_only_words_that_are_said_are_used(tmp_path: Path) -> None:
    found = read_prompts(_packages(tmp_path), "ru")

    assert [(p.name, p.text, p.seconds) for p in found] == [
        ("colon", "Введите номер: решётка", 1.0),
        ("deep/one", "Спасибо за звонок", 1.0),
        ("good", "Ваш микрофон выключен.", 1.0),
    ]


def test_the_folder_is_read_as_a_manifest(tmp_path: Path) -> None:
    lines = "".join(f"p/{n:02d}: это запись номер {chr(0x430 + n)}\n" for n in range(20))
    packages = _packages(tmp_path / "packages", lines)

    made = write_prompts(tmp_path / "speech", "ru", unpacked=packages)

    assert made.utterances == {"train": 14, "dev": 2, "test": 4}
    assert made.seconds == {"train": 14.0, "dev": 2.0, "test": 4.0}
    rows = [u for split in made.utterances for u in read_manifest(str(made.directory), split=split).utterances]
    assert sorted(u.text for u in rows) == sorted(line.partition(": ")[2] for line in lines.splitlines())
    assert {u.columns["speaker"] for u in rows} == {"ru-asterisk"} and {u.columns["language"] for u in rows} == {"ru"}
    one = next(u for u in rows if u.text.endswith(" а"))
    original = packages / "usr/share/asterisk/sounds/ru_RU_f_Voice/p/00.wav"
    assert Path(str(one.audio)).name == "p-00.wav" and Path(str(one.audio)).read_bytes() == original.read_bytes()


def test_a_folder_is_written_once_and_no_other_is_touched(tmp_path: Path) -> None:
    packages = _packages(tmp_path / "packages")
    made = write_prompts(tmp_path / "speech", "ru", unpacked=packages)

    assert write_prompts(tmp_path / "speech", "ru", unpacked=tmp_path / "nowhere") == made
    with pytest.raises(ConfigError, match="in use by something else"):
        write_prompts(tmp_path / "speech", "fr", unpacked=packages)
    with pytest.raises(ConfigError, match="in use by something else"):
        write_prompts(packages, "ru", unpacked=packages)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=120))
def test_splits_share_no_text_and_lose_no_prompt(texts: list[int]) -> None:
    prompts = [Prompt(f"p{n}", f"Text {text}".upper() if n % 2 else f"text {text}", Path("x"), 1.0)
               for n, text in enumerate(texts)]  # fmt: skip

    splits = split_prompts(prompts)
    words = {split: {p.text.casefold() for p in found} for split, found in splits.items()}

    assert sorted(p.name for found in splits.values() for p in found) == sorted(p.name for p in prompts)
    assert sum(map(len, words.values())) == len(set.union(*words.values()))
    assert split_prompts(prompts[::-1]) == splits


def test_shares_are_those_of_the_russian_prompts() -> None:
    prompts = [Prompt(f"p{n}", f"text {n}", Path("x"), 1.0) for n in range(210)]

    assert {split: len(found) for split, found in split_prompts(prompts).items()} == {
        "train": 151, "dev": 19, "test": 40,
    }  # fmt: skip


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="language is 'de', expected one of fr, ru"):
        write_prompts(tmp_path / "a", "de")
    with pytest.raises(ConfigError, match=r"core-sounds-ru.txt.gz' cannot be read: unpack the Debian package"):
        write_prompts(tmp_path / "a", "ru", unpacked=tmp_path)
    packages = _packages(tmp_path / "packages", "a: три слова тут\n")
    (packages / "usr/share/asterisk/sounds/ru_RU_f_Voice/a.wav").unlink()
    with pytest.raises(ConfigError, match="none of the prompts"):
        write_prompts(tmp_path / "a", "ru", unpacked=packages)
    (packages / "usr/share/asterisk").rename(packages / "usr/share/other")
    with pytest.raises(ConfigError, match="no recordings of ru: unpack the Debian package asterisk-core-sounds-ru-wav"):
        write_prompts(tmp_path / "a", "ru", unpacked=packages)
    assert not (tmp_path / "a").exists()


def _program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_packages_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    _program(programs, "apt-get", 'shift; for name in "$@"; do touch "${name}_1_all.deb"; done')
    _program(programs, "dpkg-deb", 'mkdir -p "$3/usr/$2"')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    found = download(tmp_path / "cache", "fr")

    assert found == tmp_path / "cache" / "fr"
    names = {"asterisk-core-sounds-fr_1_all.deb", "asterisk-core-sounds-fr-wav_1_all.deb"}
    assert {p.name for p in (found / "usr").iterdir()} == names
    monkeypatch.setattr(telephone_prompts, "_command", lambda *_: pytest.fail("downloaded a second time"))
    assert download(tmp_path / "cache", "fr") == found


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ConfigError, match=r"'apt-get' cannot be run .*: unpack Debian's packages elsewhere"):
        download(tmp_path / "cache", "fr")
    _program(programs, "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    with pytest.raises(ConfigError, match=r"'apt-get download' failed \(E: Unable to locate package\): run"):
        download(tmp_path / "cache", "fr")
    assert list((tmp_path / "cache").iterdir()) == []
