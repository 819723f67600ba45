"""Record files: sizes, round trips, refusals, and the way back to the state that transcribed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.adapt.file import (
    AdaptationFile,
    decode_file,
    encode_file,
    read_file,
    replay_file,
    write_file,
)
from client.adapt.record import AdaptationRecord, Layout, quantise, undo
from zo_common.errors import ChecksumMismatch, CodecError, ConfigError, ProtocolMismatch
from zo_common.lattice.state import LatticeState

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]


def _record(seed: int, layout: Layout = "float32", steps: int = 3, queries: int = 4) -> AdaptationRecord:
    grads = np.random.default_rng(seed % 1000).normal(size=(steps, queries)).astype(np.float32)
    return AdaptationRecord(seed, 1e-2, quantise(grads, layout, 0.5), layout)


def _file(seed: int = 7, layout: Layout = "float32", **changes: int) -> AdaptationFile:
    return AdaptationFile(_record(seed, layout, **changes), 2**64 - 5, "norms+features", "unit", "en", (seed,), 9)


@pytest.mark.parametrize(("layout", "size"), [("float32", 1410), ("float16", 770), ("sign", 174)])
def test_forty_steps_of_eight_queries(layout: Layout, size: int) -> None:
    file = _file(2**64 - 1, layout, steps=40, queries=8)

    data = encode_file(file)

    assert len(data) == size
    assert decode_file(data) == file


@given(
    pattern=st.text(max_size=50),
    language=st.text(max_size=8),
    made_of=st.lists(st.integers(0, 2**64 - 1), max_size=5),
    steps=st.integers(0, 3),
)
def test_round_trips(pattern: str, language: str, made_of: list[int], steps: int) -> None:
    encoded = [text.encode(errors="replace").decode() for text in (pattern, language)]  # lone surrogates have no UTF-8
    file = AdaptationFile(_record(3, steps=steps), 1, encoded[0], "rms", encoded[1], tuple(made_of), 2)

    assert decode_file(encode_file(file)) == file


def test_every_cut_and_flipped_bit_is_noticed() -> None:
    data = encode_file(_file(steps=1, queries=2))

    for end in range(len(data)):
        with pytest.raises(CodecError):
            decode_file(data[:end])
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CodecError, ProtocolMismatch)):
            decode_file(bytes(altered))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_sealed_noise_is_refused(body: bytes) -> None:
    from zo_common.binary.durable import seal

    with pytest.raises(CodecError):
        decode_file(seal(b"ZTAF", 1, body))


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 1000 bytes"):
        write_file(tmp_path / "a.zta", replace(_file(), trained_tensors="x" * 1001))
    with pytest.raises(ConfigError, match="65536 adaptations are held"):
        write_file(tmp_path / "a.zta", replace(_file(), made_of=(1,) * 65536))

    assert list(tmp_path.iterdir()) == []


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zta"
    path.write_bytes(b"RIFF")

    with pytest.raises(CodecError, match=r"a\.zta' is no record of an adaptation .* pass a \.zta file"):
        read_file(path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.zta")


class TestReplay:
    def test_it_leads_to_the_state_and_back(self, small_model: Models, weight_bytes: Reader, tmp_path: Path) -> None:
        model = small_model()
        state = LatticeState(model, "all", threads=1)
        before = weight_bytes(model)
        records = {seed: _record(seed) for seed in (1, 2, 3)}
        for seed in (1, 3):
            state.apply(records[seed].updates())
        reached = state.checksum()
        for seed in (1, 3):
            undo(state, records[seed])
        write_file(tmp_path / "a.zta", replace(_file(3), record=records[3], made_of=(1, 3), reached=reached))

        applied = replay_file(state, read_file(tmp_path / "a.zta"), records.get)

        assert state.checksum() == reached
        for record in applied:
            undo(state, record)
        assert weight_bytes(model) == before

    def test_a_record_the_guard_refused_stays_out(self, small_model: Models) -> None:
        state = LatticeState(small_model(), "all", threads=1)
        base = state.checksum()

        assert replay_file(state, replace(_file(), made_of=(), reached=base)) == []

        assert state.checksum() == base

    def test_a_missing_predecessor_is_said(self, small_model: Models) -> None:
        state = LatticeState(small_model(), "all", threads=1)
        base = state.checksum()

        with pytest.raises(ConfigError, match="2 of the 3 adaptations that this one is made of are not beside it"):
            replay_file(state, replace(_file(3), made_of=(1, 2, 3)))

        assert state.checksum() == base

    def test_another_state_is_taken_back(self, small_model: Models) -> None:
        state = LatticeState(small_model(), "all", threads=1)
        base = state.checksum()

        with pytest.raises(ChecksumMismatch):
            replay_file(state, replace(_file(), reached=base))

        assert state.checksum() == base
