"""Damaged bytes at every reader: an answer or the project's own error, never a crash, a hang or memory without bound.

A few seconds here, with hypothesis, which shrinks what it finds; `python -m tests.fuzz` goes on for a million inputs,
and FUZZ_EXAMPLES raises the number here.
"""

from __future__ import annotations

import os
import random
import struct
import zlib
from functools import lru_cache
from typing import Any

import pytest
from fuzz_edits import OPERATIONS, Edit, edited
from fuzz_target import Target
from fuzz_targets import targets
from fuzzing import Failure, draw, feed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zo_common.binary.packing import Reader
from zo_common.errors import CodecError, LedgerAltered
from zo_common.ledger.ledger import decode_ledger
from zo_common.ledger.record_codec import decode_record

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
NAMES = (
    *(
        "plan",
        "reply",
        "evaluation",
        "calibration-ask",
        "calibration-answer",
        "record",
        "inboxes",
        "ledger",
        "ledger-file",
        "ledger-header",
        "ledger-record",
    ),
    *("snapshot-part", "snapshot", "snapshot-planes", "adaptation", "adaptation-sealed", "adaptation-file"),
    *(
        "adaptation-body",
        "guard.jsonl of devices",
        "guard.jsonl",
        "devices.json",
        "rounds.jsonl",
        "steps.jsonl",
        "introduction",
        "worker-request",
        "worker-settings",
    ),
    *("journal-state", "journal-ledger", "journal-answer"),
    *("secure-message", "secure-sum", "secure-state", "secure-reply", "privacy.jsonl"),
    *(
        "metadata.csv",
        "metadata.jsonl",
        "a JSON array",
        "metadata.parquet",
        "Common Voice",
        "LibriSpeech",
        "Kaldi segments",
    ),
    *("Kaldi wav.scp", "Kaldi text", "NeMo", "a bare table", "dataset_dict.json", "a recording"),
)

edits = st.builds(
    Edit,
    st.sampled_from(OPERATIONS),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 64),
    st.integers(0, 2**32 - 1),
)


@lru_cache(maxsize=1)
def known() -> dict[str, Target]:
    """Built once."""
    return targets()


def test_every_reader_is_listed() -> None:
    assert tuple(known()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_valid_input_is_read(name: str) -> None:
    target = known()[name]
    accepted = [feed(target, seed, weigh=True) for seed in target.seeds]
    # A message of one secure sum is a stranger in another: keys are drawn anew.
    assert any(accepted) if name == "secure-sum" else all(accepted)


@pytest.mark.parametrize("name", NAMES)
@given(damage=st.lists(edits, min_size=1, max_size=4), first=st.integers(0, 9), second=st.integers(0, 9))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_input_is_read_or_refused(name: str, damage: list[Edit], first: int, second: int) -> None:
    target = known()[name]
    count = len(target.seeds)
    data = edited(target.seeds[first % count], damage, target.seeds[second % count])
    assert feed(target, data, weigh=True) is feed(target, data, weigh=False)  # what was read before is no excuse


@pytest.mark.parametrize("name", NAMES)
def test_random_damage(name: str) -> None:
    target, rng = known()[name], random.Random(name)
    inputs = [draw(target, rng) for _ in range(2 * EXAMPLES)]
    verdicts = [feed(target, data, weigh=turn % 10 == 0) for turn, data in enumerate(inputs)]
    assert verdicts[::10] == [feed(target, data, weigh=False) for data in inputs[::10]]


def test_what_is_looked_for_is_found() -> None:
    def crash(data: bytes) -> Any:
        return data[0]

    def swell(data: bytes) -> Any:
        return bytearray(struct.unpack("<I", data)[0])

    with pytest.raises(Failure, match="IndexError"):
        feed(Target(crash, (b"x",)), b"", weigh=False)
    with pytest.raises(Failure, match="bytes allocated"):
        feed(Target(swell, (b"x",)), struct.pack("<I", 64 << 20), weigh=True)


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzzing.SECONDS", 0.05)

    def hang(data: bytes) -> None:
        while True:
            pass

    with pytest.raises(Failure, match="more than"):
        feed(Target(hang, (b"x",)), b"", weigh=False)


@pytest.mark.parametrize("shape", [(0, 0), (65535, 0), (0, 65535)])
def test_contributions_without_coefficients_are_refused(shape: tuple[int, int]) -> None:
    """Twenty bytes each that a replay would walk 65535 steps for."""
    data = struct.pack("<IQI", 1, 0, 1) + struct.pack("<QQHH", 1, 2, *shape)
    with pytest.raises(CodecError, match="announces"):
        decode_record(data)


def test_a_header_that_swells_is_refused() -> None:
    target = known()["ledger-header"]
    bomb = b'{"tensors":[' + b"[]," * (40 << 20) + b"[]]}"
    with pytest.raises(LedgerAltered, match="does not end"):
        decode_ledger(target.wrap(bomb))
    assert len(zlib.compress(bomb)) < 1 << 18


def test_signs_have_one_encoding() -> None:
    assert Reader(b"\x05", "votes").signs(3).tolist() == [-1, 1, -1]
    with pytest.raises(CodecError, match="behind its 3 signs"):
        Reader(b"\x0d", "votes").signs(3)
