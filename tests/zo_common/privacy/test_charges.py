"""What was spent is on disk before anyone is asked, survives a crash, and cannot be understated unseen."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zo_common.errors import LedgerAltered, LedgerError
from zo_common.ledger.file import LedgerFile, ledger_chains
from zo_common.ledger.ledger import LedgerHeader
from zo_common.ledger.record import Record
from zo_common.privacy import charges as privacy_log
from zo_common.privacy.accountant import Release, epsilon_spent
from zo_common.privacy.charges import LOG_NAME, Charge, PrivacyLog, most_spent

DELTA = 1e-6
Headers = Callable[..., LedgerHeader]
Records = Callable[[int], Record]


@pytest.fixture
def ledger(tmp_path: Path, header_of: Headers, record_of: Records) -> LedgerFile:
    """Three rounds."""
    made = LedgerFile.create(tmp_path / "ledger.zo", header_of())
    made.extend([record_of(n) for n in (1, 2, 3)])
    return made


def _charge(ledger: LedgerFile, server_round: int, log: PrivacyLog, **changes: Any) -> Charge:
    """Devices 1 and 2 of 50 utterances, 3 of 20; ε as it is after this charge."""
    chain = ledger.chains[server_round - 1].hex()
    charge = Charge(server_round, chain, "example", 1.3, 2, 10, {50: [1, 2], 20: [3]}, 0.0, DELTA)
    charge = replace(charge, **changes)
    worst = Release(1.3, 10, 20)
    return replace(charge, epsilon=epsilon_spent({worst: 2 * (len(log.charges) + 1)}, DELTA))


def _filled(ledger: LedgerFile, path: Path, rounds: tuple[int, ...] = (1, 2, 3)) -> PrivacyLog:
    log = PrivacyLog.create(path)
    for number in rounds:
        log.append(_charge(ledger, number, log))
    return log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LOG_NAME


def test_accounts_add_up_over_rounds_and_openings(ledger: LedgerFile, path: Path) -> None:
    log = _filled(ledger, path, (1, 2))

    log = PrivacyLog.open(path)
    log.append(_charge(ledger, 3, log))

    found = PrivacyLog.read(path)
    assert found.charges == log.charges
    assert found.spent == {1: {Release(1.3, 10, 50): 6}, 2: {Release(1.3, 10, 50): 6}, 3: {Release(1.3, 10, 20): 6}}
    assert most_spent(found.spent, DELTA) == epsilon_spent({Release(1.3, 10, 20): 6}, DELTA) == log.charges[-1].epsilon
    found.check_against(ledger_chains(ledger.path), {n: [1, 2, 3] for n in (1, 2, 3)})


def test_a_device_level_answer_counts_once_a_round(ledger: LedgerFile, path: Path) -> None:
    log = PrivacyLog.create(path)
    log.append(replace(_charge(ledger, 1, log), level="device", devices={1: [4]}))

    assert log.spent == {4: {Release(1.3): 1}}


def test_a_round_asked_for_again_is_charged_again(ledger: LedgerFile, path: Path) -> None:
    log = _filled(ledger, path, (1, 2, 2))

    assert log.spent[3] == {Release(1.3, 10, 20): 6}
    log.check_against(ledger.chains, {1: [1], 2: [1]})


def test_a_line_torn_by_a_crash_is_cut_off(ledger: LedgerFile, path: Path) -> None:
    _filled(ledger, path, (1, 2))
    whole = path.read_bytes()
    log = PrivacyLog.open(path)
    log.append(_charge(ledger, 3, log))
    line = path.read_bytes()[len(whole) :]

    for cut in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(whole + line[:cut])
        assert len(PrivacyLog.read(path).charges) == 2
        assert len(PrivacyLog.open(path).charges) == 2
        assert path.read_bytes() == whole
    log = PrivacyLog.open(path)
    log.append(_charge(ledger, 3, log))
    assert path.read_bytes() == whole + line


def test_every_altered_byte_of_whole_lines_is_found(ledger: LedgerFile, path: Path) -> None:
    data = _filled(ledger, path).path.read_bytes()

    for at in range(0, len(data) - 1, 7):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(bytes(changed))
        try:
            found = PrivacyLog.read(path)
        except LedgerAltered:
            continue
        # a number spelled otherwise says the same; all else is found
        assert found.charges == _filled(ledger, path.with_name(f"{at}.jsonl")).charges


@pytest.mark.parametrize("line", [b"{}\n", b"null\n", b"\xff\n", b'{"chain":"00","level":"example"}\n', b"[" * 5000])
def test_lines_that_are_none(path: Path, line: bytes) -> None:
    path.write_bytes(line.rstrip(b"\n") + b"\n")

    with pytest.raises(LedgerAltered, match="line 1"):
        PrivacyLog.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0}, {"noise_multiplier": 1e-300}, {"noise_multiplier": "1"}, {"steps": 0},
        {"steps": -4}, {"steps": 2**70}, {"batch": 1.5}, {"server_round": True}, {"epsilon": 10**400},
        {"epsilon": float("nan")}, {"delta": 0.0}, {"delta": 1.5}, {"level": "none"}, {"devices": {0: [1]}},
        {"devices": {50: [-1]}}, {"devices": {50: ["1"]}},
    ],
)  # fmt: skip
def test_a_chained_line_that_accounts_for_nothing(path: Path, changes: dict[str, Any]) -> None:
    charge = Charge(1, "ab" * 32, "example", 1.3, 2, 10, {50: [1]}, 9.0, DELTA)
    text = privacy_log._text(replace(charge, **changes))
    path.write_text(text[:-1] + f',"chain":"{privacy_log._link("", text)}"}}\n')

    with pytest.raises(LedgerAltered, match="line 1 cannot be read"):
        PrivacyLog.read(path)


def test_a_missing_log_is_an_error(path: Path) -> None:
    with pytest.raises(LedgerError, match="the privacy that the run has spent is unknown"):
        PrivacyLog.open(path)


def test_an_old_log_is_not_written_over(ledger: LedgerFile, path: Path) -> None:
    _filled(ledger, path)
    before = path.read_bytes()

    with pytest.raises(LedgerError, match="cannot be created"):
        PrivacyLog.create(path)
    assert path.read_bytes() == before


def test_a_full_disk_charges_nothing(ledger: LedgerFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _filled(ledger, path, (1,))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LedgerError, match="no device was asked"):
            log.append(_charge(ledger, 2, log))
    log.append(_charge(ledger, 2, log))

    assert [c.server_round for c in PrivacyLog.read(path).charges] == [1, 2]


class TestAgainstTheLedger:
    def test_of_another_run(self, ledger: LedgerFile, path: Path, tmp_path: Path, header_of: Headers) -> None:
        log = _filled(ledger, path)
        other = LedgerFile.create(tmp_path / "other.zo", header_of(run_seed=5))

        with pytest.raises(LedgerAltered, match="round 1 belongs to another ledger"):
            log.check_against(other.chains, {})

    def test_scalars_nobody_was_charged_for(self, ledger: LedgerFile, path: Path) -> None:
        log = _filled(ledger, path, (1, 3))

        log.check_against(ledger.chains, {1: [1, 3], 3: []})
        with pytest.raises(LedgerAltered, match="round 2 of the ledger holds scalars"):
            log.check_against(ledger.chains, {1: [1], 2: []})
        with pytest.raises(LedgerAltered, match="device 9 was not charged for round 3"):
            log.check_against(ledger.chains, {3: [1, 9]})

    def test_less_stated_than_spent(self, ledger: LedgerFile, path: Path) -> None:
        log = PrivacyLog.create(path)
        charge = _charge(ledger, 1, log)
        log.append(replace(charge, epsilon=charge.epsilon - 0.01))

        with pytest.raises(LedgerAltered, match="states ε"):
            log.check_against(ledger.chains, {})


def test_lines_can_be_read_by_people(ledger: LedgerFile, path: Path) -> None:
    row = json.loads(_filled(ledger, path).path.read_text().splitlines()[0])

    assert row["devices"] == {"20": [3], "50": [1, 2]}
    assert (row["server_round"], row["noise_multiplier"], row["steps"]) == (1, 1.3, 2)
    assert len(row["chain"]) == len(row["ledger"]) == 32
