"""Ledgers that start after a snapshot, grow by several rounds at once and are cut: always what a list would hold."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_common.errors import CodecError, LedgerAltered, LedgerError
from zo_common.ledger.file import LedgerFile, read_ledger, write_ledger
from zo_common.ledger.ledger import Ledger, LedgerHeader, decode_ledger, encode_ledger
from zo_common.ledger.record import Contribution, Record

Headers = Callable[..., LedgerHeader]
Records = Callable[[int], Record]
Ledgers = Callable[..., Ledger]
NOT_FINITE = Contribution(1, 1, np.array([[np.nan]], np.float32))
EMPTY = Contribution(1, 1, np.ones((1, 0), np.float32))


def _count_flushes(patch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the file at every fsync from now on."""
    sizes: list[int] = []
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    patch.setattr(os, "fsync", flush)
    return sizes


def _fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_ledger_after_a_snapshot_counts_from_there(tmp_path: Path, header_of: Headers, record_of: Records) -> None:
    path = tmp_path / "ledger.zo"
    file = LedgerFile.create(path, header_of(), after=5)
    assert (file.ledger.last_round, file.ledger.after, file.ledger.since(5)) == (5, 5, ())

    file.append(record_of(6))
    file.extend([record_of(7), record_of(8)])

    assert file.ledger == read_ledger(path, 5) == LedgerFile.open(path, after=5).ledger
    assert file.ledger.last_round == 8
    assert file.ledger.since(6) == (record_of(7), record_of(8))
    assert file.ledger.since(8) == file.ledger.since(9) == ()
    assert decode_ledger(path.read_bytes(), 5) == file.ledger
    assert path.read_bytes() == encode_ledger(file.ledger)


def test_rounds_before_a_ledgers_first_are_refused_not_skipped(header_of: Headers, record_of: Records) -> None:
    ledger = Ledger(header_of(), (record_of(6), record_of(7)), after=5)

    for server_round in (4, 0, -1):
        with pytest.raises(LedgerError, match=f"rounds after {server_round} were asked .* starts after round 5"):
            ledger.since(server_round)


@pytest.mark.parametrize(("written", "read"), [(5, 0), (0, 5), (5, 6)])
def test_a_ledger_read_as_one_with_another_start_is_refused_and_left_alone(
    tmp_path: Path, header_of: Headers, record_of: Records, written: int, read: int
) -> None:
    path = tmp_path / "ledger.zo"
    LedgerFile.create(path, header_of(), after=written).append(record_of(written + 1))
    before = path.read_bytes()

    for use in (lambda: LedgerFile.open(path, after=read), lambda: read_ledger(path, read)):
        with pytest.raises(LedgerAltered, match=f"round {written + 1} stands where round {read + 1} belongs"):
            use()
    assert path.read_bytes() == before


def test_rounds_in_one_go_are_the_bytes_of_rounds_one_by_one(
    tmp_path: Path, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)
    flushed = _count_flushes(monkeypatch)

    file.extend(ledger_of(7).records[2:])
    file.extend([])

    assert path.read_bytes() == encode_ledger(ledger_of(7))
    assert file.ledger == ledger_of(7)
    assert flushed == [len(encode_ledger(ledger_of(7)))]


def _broken(first: Record, rest: list[Record], at: int, kind: str) -> list[Record]:
    rounds = [first, *rest]
    if kind == "skips":
        return [*rounds[:at], *rounds[at + 1 :], replace(rounds[-1], server_round=99)]
    bad = NOT_FINITE if kind == "not finite" else EMPTY
    return [*rounds[:at], replace(rounds[at], contributions=(bad,)), *rounds[at + 1 :]]


@pytest.mark.parametrize("kind", ["skips", "not finite", "empty"])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_one_bad_round_keeps_all_of_them_out(
    tmp_path: Path, ledger_of: Ledgers, record_of: Records, at: int, kind: str
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)

    with pytest.raises((LedgerError, CodecError)):
        file.extend(_broken(record_of(3), [record_of(n) for n in (4, 5, 6)], at, kind))

    assert file.ledger == ledger_of(2)
    assert path.read_bytes() == encode_ledger(ledger_of(2))
    file.extend([record_of(3), record_of(4)])
    assert read_ledger(path) == ledger_of(4)


def test_a_full_disk_keeps_all_rounds_out_and_a_later_try_works(
    tmp_path: Path, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)
    rounds = ledger_of(9).records[2:]

    with monkeypatch.context() as patch, pytest.raises(LedgerError, match=r"rounds 3 to 9 could not .*No space left"):
        patch.setattr(os, "fsync", _fail)
        file.extend(rounds)

    assert path.read_bytes() == encode_ledger(ledger_of(2))
    assert file.ledger == ledger_of(2)
    file.extend(rounds)
    assert path.read_bytes() == encode_ledger(ledger_of(9))


def test_a_write_that_the_system_refuses_is_a_word(tmp_path: Path, ledger_of: Ledgers, record_of: Records) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)
    path.unlink()

    with pytest.warns(UserWarning, match="could not be cut off"), pytest.raises(LedgerError, match="No such file"):
        file.append(record_of(3))

    assert file.ledger == ledger_of(2)


def test_a_file_that_someone_else_cut_gets_no_hole(tmp_path: Path, ledger_of: Ledgers, record_of: Records) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)
    write_ledger(path, ledger_of(1))

    with pytest.raises(LedgerError, match="was cut short by someone else: open it again"):
        file.append(record_of(3))

    assert read_ledger(path, tolerate_torn=False) == ledger_of(1)


@pytest.mark.parametrize("after", [0, 5])
def test_a_cut_drops_later_rounds_durably_and_others_may_follow(
    tmp_path: Path, header_of: Headers, record_of: Records, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path = tmp_path / "ledger.zo"
    rounds = [record_of(after + n) for n in range(1, 5)]
    file = LedgerFile.create(path, header_of(), after)
    file.extend(rounds)
    flushed = _count_flushes(monkeypatch)

    file.cut(after + 2)
    assert file.ledger == read_ledger(path, after, tolerate_torn=False)
    assert file.ledger.records == tuple(rounds[:2])
    assert flushed == [path.stat().st_size]

    other = replace(rounds[2], checksum=77)
    file.extend([other])
    assert LedgerFile.open(path, after).ledger.records == (*rounds[:2], other)

    file.cut(after)
    assert file.ledger == read_ledger(path, after, tolerate_torn=False) == Ledger(header_of(), (), after)


def test_a_cut_behind_the_last_round_touches_nothing(
    tmp_path: Path, ledger_of: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(2))
    file = LedgerFile.open(path)
    monkeypatch.setattr(os, "fsync", _fail)

    file.cut(2)
    file.cut(9)

    assert path.read_bytes() == encode_ledger(ledger_of(2))


@pytest.mark.parametrize(("after", "server_round"), [(0, -1), (5, 4)])
def test_a_cut_before_the_first_round_is_refused(
    tmp_path: Path, header_of: Headers, record_of: Records, after: int, server_round: int
) -> None:
    file = LedgerFile.create(tmp_path / "ledger.zo", header_of(), after)
    file.append(record_of(after + 1))

    with pytest.raises(LedgerError, match=f"starts after round {after} cannot be cut at round {server_round}"):
        file.cut(server_round)

    assert read_ledger(file.path, after).last_round == after + 1


def test_a_cut_that_could_not_be_flushed_is_told_and_leaves_no_hole(
    tmp_path: Path, ledger_of: Ledgers, record_of: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(4))
    file = LedgerFile.open(path)

    with monkeypatch.context() as patch, pytest.raises(LedgerError, match="rounds after 1 could not be cut off"):
        patch.setattr(os, "fsync", _fail)
        file.cut(1)

    file.extend([record_of(n) for n in range(file.ledger.last_round + 1, 6)])
    assert file.ledger == read_ledger(path, tolerate_torn=False) == ledger_of(5)


def test_a_cut_of_a_missing_file_is_a_word_and_changes_nothing(tmp_path: Path, ledger_of: Ledgers) -> None:
    path = tmp_path / "ledger.zo"
    write_ledger(path, ledger_of(4))
    file = LedgerFile.open(path)
    path.unlink()

    with pytest.raises(LedgerError, match=r"rounds after 1 could not be cut off .*No such file"):
        file.cut(1)

    assert file.ledger == ledger_of(4)


def test_a_kill_at_any_byte_of_an_extension_leaves_its_first_rounds(
    tmp_path: Path, ledger_of: Ledgers, record_of: Records
) -> None:
    path = tmp_path / "ledger.zo"
    whole = encode_ledger(ledger_of(5))
    ends = [len(encode_ledger(ledger_of(n))) for n in range(6)]

    for length in range(ends[2], len(whole) + 1):
        path.write_bytes(whole[:length])
        with warnings.catch_warnings(record=True) as words:
            warnings.simplefilter("always")
            file = LedgerFile.open(path)
        kept = sum(end <= length for end in ends) - 1
        assert file.ledger == ledger_of(kept)
        assert len(words) == (length != ends[kept])
    file.append(record_of(6))
    assert read_ledger(path) == ledger_of(6)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.integers(0, 4)),
        st.tuples(st.just("append"), st.just(1)),
        st.tuples(st.just("cut"), st.integers(0, 8)),
        st.tuples(st.just("fail"), st.integers(1, 3)),
        st.tuples(st.just("open"), st.just(0)),
        # as a kill within the last write leaves it: so many of its bytes are missing
        st.tuples(st.just("kill"), st.integers(1, 120)),
    ),
    max_size=12,
)


class Pair:
    """A ledger file and the list of records it must always equal."""

    def __init__(self, path: Path, header: LedgerHeader, after: int) -> None:
        self.file = LedgerFile.create(path, header, after)
        self.after = after
        self.expected: list[Record] = []
        self.written = 0  # rounds of the last write, the only ones a kill may take
        self.checksum = 1

    def next_rounds(self, count: int) -> list[Record]:
        """New records, of different lengths and never the same twice."""
        first = self.after + len(self.expected) + 1
        self.checksum += 1
        grads = np.ones((1, 1 + self.checksum % 3), np.float32)
        return [Record(n, self.checksum, (Contribution(n, 0, grads),)) for n in range(first, first + count)]

    def grow(self, count: int) -> None:
        rounds = self.next_rounds(count)
        self.file.extend(rounds) if count != 1 else self.file.append(rounds[0])
        self.expected += rounds
        self.written = count

    def fail(self, count: int) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(LedgerError):
            patch.setattr(os, "fsync", _fail)
            self.file.extend(self.next_rounds(count))

    def cut(self, kept: int) -> None:
        self.file.cut(self.after + kept)
        del self.expected[kept:]
        self.written = 0

    def kill(self, missing: int) -> None:
        path = self.file.path
        whole = path.stat().st_size
        ends = [len(encode_ledger(replace(self.file.ledger, records=tuple(self.expected[:n])))) for n in range(99)]
        left = max(whole - missing, ends[len(self.expected) - self.written])
        os.truncate(path, left)
        del self.expected[sum(end <= left for end in ends[: len(self.expected) + 1]) - 1 :]
        self.written = 0
        with warnings.catch_warnings(action="ignore"):
            self.open()

    def open(self) -> None:
        self.file = LedgerFile.open(self.file.path, self.after)

    def step(self, name: str, number: int) -> None:
        if name == "open":
            self.open()
        else:
            {"extend": self.grow, "append": self.grow, "cut": self.cut, "fail": self.fail, "kill": self.kill}[name](
                number
            )


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([0, 5]))
def test_any_sequence_of_changes_equals_a_list(header_of: Headers, sequence: list[tuple[str, int]], after: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.zo"
        pair = Pair(path, header_of(), after)
        for name, number in sequence:
            pair.step(name, number)
            expected = Ledger(header_of(), tuple(pair.expected), after)
            assert pair.file.ledger == read_ledger(path, after, tolerate_torn=False) == expected
            assert path.read_bytes() == encode_ledger(expected)
