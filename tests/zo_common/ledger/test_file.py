"""A ledger on disk: durable appends, repair of a torn end and of nothing else."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zo_common.errors import LedgerAltered, LedgerError, LedgerTruncated, ProtocolMismatch, ZOError
from zo_common.ledger.file import LedgerFile, read_ledger, write_ledger
from zo_common.ledger.ledger import Ledger, LedgerHeader, encode_header, encode_ledger
from zo_common.ledger.record import Contribution, Record

Headers = Callable[..., LedgerHeader]
Records = Callable[[int], Record]
Ledgers = Callable[..., Ledger]
WARNINGS_ARE_ERRORS = pytest.mark.filterwarnings("error")


def _ends(ledger: Ledger) -> list[int]:
    """File size after the header and after every round."""
    return [len(encode_ledger(replace(ledger, records=ledger.records[:n]))) for n in range(len(ledger.records) + 1)]


@WARNINGS_ARE_ERRORS
def test_append_and_read(tmp_path: Path, header_of: Headers, record_of: Records, ledger_of: Ledgers) -> None:
    path = tmp_path / "runs" / "new" / "ledger.zo"
    file = LedgerFile.create(path, header_of())
    assert read_ledger(path) == ledger_of(0)

    for n in (1, 2, 3):
        file.append(record_of(n))
        assert file.ledger == read_ledger(path) == ledger_of(n)
        assert path.read_bytes() == encode_ledger(ledger_of(n))
    assert [p.name for p in path.parent.iterdir()] == ["ledger.zo"]


@WARNINGS_ARE_ERRORS
def test_a_run_goes_on_after_a_restart(tmp_path: Path, record_of: Records, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))

    for n in (3, 4):
        file = LedgerFile.open(path)
        assert file.ledger.last_round == n - 1
        file.append(record_of(n))

    assert path.read_bytes() == encode_ledger(ledger_of(4))


def test_a_record_torn_anywhere_is_dropped_and_the_run_goes_on(
    tmp_path: Path, record_of: Records, ledger_of: Ledgers
) -> None:
    path = tmp_path / "ledger.zo"
    whole = encode_ledger(ledger_of(3))
    good, end = _ends(ledger_of(3))[2:]

    for length in range(good + 1, end):
        path.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match=f"round 3: a crash cut .* its {length - good} bytes are dropped"):
            assert read_ledger(path) == ledger_of(2)
        assert path.stat().st_size == length
        with pytest.raises(LedgerTruncated):
            read_ledger(path, tolerate_torn=False)

        with pytest.warns(UserWarning, match="round 3"):
            file = LedgerFile.open(path)
        assert path.read_bytes() == whole[:good]
        file.append(record_of(3))
        assert path.read_bytes() == whole


@WARNINGS_ARE_ERRORS
def test_a_file_cut_between_records_is_whole(tmp_path: Path, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    data = encode_ledger(ledger_of(3))

    for rounds, end in enumerate(_ends(ledger_of(3))):
        path.write_bytes(data[:end])
        assert LedgerFile.open(path).ledger == ledger_of(rounds)
        assert read_ledger(path, tolerate_torn=False) == ledger_of(rounds)


def test_a_file_cut_within_the_header_is_left_alone(tmp_path: Path, header_of: Headers) -> None:
    path = tmp_path / "ledger.zo"
    data, _ = encode_header(header_of())

    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(LedgerTruncated):
            LedgerFile.open(path)
        assert path.read_bytes() == data[:length]


def _length_fields(ledger: Ledger) -> set[int]:
    return {start + i for start in _ends(ledger)[:-1] for i in range(4)}


def _expect_refused_and_untouched(path: Path, data: bytes, places: set[int]) -> None:
    for place in sorted(places):
        for flip in (0x01, 0x80):
            altered = data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]
            path.write_bytes(altered)
            with pytest.raises((LedgerError, ProtocolMismatch)):
                LedgerFile.open(path)
            with pytest.raises((LedgerError, ProtocolMismatch)):
                read_ledger(path)
            assert path.read_bytes() == altered


@WARNINGS_ARE_ERRORS
def test_an_altered_byte_is_an_error_and_the_file_is_left_alone(tmp_path: Path, ledger_of: Ledgers) -> None:
    data = encode_ledger(ledger_of(3))

    _expect_refused_and_untouched(tmp_path / "ledger.zo", data, set(range(len(data))) - _length_fields(ledger_of(3)))


@pytest.mark.filterwarnings("ignore:.*bytes are dropped")
def test_an_altered_length_is_an_error_and_the_file_is_left_alone(tmp_path: Path, ledger_of: Ledgers) -> None:
    data = encode_ledger(ledger_of(3))

    _expect_refused_and_untouched(tmp_path / "ledger.zo", data, _length_fields(ledger_of(3)))


def test_another_protocol_version_is_left_alone(tmp_path: Path, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    data = encode_ledger(ledger_of(1))
    path.write_bytes(data[:8] + b"\x02\x00" + data[10:])

    with pytest.raises(ProtocolMismatch):
        LedgerFile.open(path)
    assert path.stat().st_size == len(data)


def test_not_a_ledger_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("These are not the bytes of a ledger.")

    with pytest.raises(LedgerAltered, match="is it the right file"):
        LedgerFile.open(tmp_path / "notes.txt")
    for path in (tmp_path / "missing.zo", tmp_path, tmp_path / "notes.txt" / "ledger.zo"):
        with pytest.raises(LedgerError, match=r"cannot be read \(.+\): check the path"):
            LedgerFile.open(path)


def test_create_refuses_an_existing_file(tmp_path: Path, header_of: Headers, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))

    with pytest.raises(LedgerError, match="exists already"):
        LedgerFile.create(path, header_of())
    assert read_ledger(path) == ledger_of(2)


@pytest.mark.parametrize("server_round", [0, 2, 4, 5])
def test_only_the_next_round_can_be_appended(
    tmp_path: Path, record_of: Records, ledger_of: Ledgers, server_round: int
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)

    with pytest.raises(LedgerError, match=f"round {server_round} cannot follow round 2"):
        file.append(record_of(server_round))

    assert path.read_bytes() == encode_ledger(ledger_of(2))
    file.append(record_of(3))
    assert read_ledger(path) == ledger_of(3)


@WARNINGS_ARE_ERRORS
def test_a_full_disk_leaves_the_ledger_whole_and_a_later_append_works(
    tmp_path: Path, record_of: Records, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)
    sizes: list[int] = []

    def full(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"round 3 could not be written to .*No space left on device"):
                file.append(record_of(3))
            assert path.read_bytes() == encode_ledger(ledger_of(2))
            assert file.ledger == ledger_of(2)

    assert sizes == [_ends(ledger_of(3))[3]] * 2
    file.append(record_of(3))
    assert path.read_bytes() == encode_ledger(ledger_of(3))


def test_what_a_failed_append_could_not_cut_off_is_repaired_later(
    tmp_path: Path, record_of: Records, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "truncate", fail)
        with pytest.warns(UserWarning, match="could not be cut off"), pytest.raises(LedgerError, match="Input/output"):
            file.append(record_of(3))

    # a shorter record than the one left behind replaces it entirely
    short = Record(3, 9, ())
    file.append(short)
    assert read_ledger(path, tolerate_torn=False).records == (*ledger_of(2).records, short)


def test_an_interrupted_rewrite_keeps_the_old_file(
    tmp_path: Path, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        write_ledger(path, ledger_of(3))

    assert read_ledger(path) == ledger_of(2)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_round_that_could_not_be_read_back_is_not_written(tmp_path: Path, ledger_of: Ledgers, value: float) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    broken = Record(3, 0, (Contribution(1, 1, np.array([[value]], np.float32)),))

    with suppress(ZOError):
        LedgerFile.open(path).append(broken)

    assert read_ledger(path) == ledger_of(2)


def test_no_warning_without_a_torn_record(tmp_path: Path, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(1))

    with warnings.catch_warnings(record=True) as seen:
        read_ledger(path)
        LedgerFile.open(path)

    assert seen == []


def test_space_that_a_crash_left_zeroed_is_dropped_like_a_torn_record(tmp_path: Path, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    whole = encode_ledger(ledger_of(2))
    path.write_bytes(whole + bytes(300))

    with pytest.warns(UserWarning, match="300 bytes are dropped"):
        opened = LedgerFile.open(path)

    assert opened.ledger == ledger_of(2)
    assert path.read_bytes() == whole
