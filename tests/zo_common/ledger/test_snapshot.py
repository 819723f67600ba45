"""A ledger compacted into one difference: the replay's bits, bounded reading, and all or nothing."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zo_common.errors import CodecError, LatticeOverflow, UnsupportedModel
from zo_common.lattice import state as state_module
from zo_common.lattice.kernels.choice import KernelName
from zo_common.lattice.state import LatticeState
from zo_common.lattice.update import Update
from zo_common.ledger import snapshot as snapshot_module
from zo_common.ledger.snapshot import apply_snapshot, encode_snapshot, largest_snapshot

Models = Callable[..., nn.Module]
Reader = Callable[[nn.Module], dict[str, bytes]]
KERNELS = pytest.mark.parametrize("kernel", ["numpy", "numba", "torch"])
UPDATES = [Update(2**63 + 5, 1e-3), Update(7, -3e-5), Update(9, 0.02), Update(11, 2e-7)]
TOP = 2.0**24  # grid units that a tensor of grid exponent 0 may hold


def _pair(model: Callable[[], nn.Module], updates: list[Update] = UPDATES) -> tuple[LatticeState, LatticeState]:
    """The base and where updates lead from it."""
    base, now = (LatticeState(model(), "all", threads=1) for _ in range(2))
    now.apply(updates)
    return base, now


def _whole_numbers(module_of: Models, **units: list[int]) -> LatticeState:
    """A state whose weights are these grid units."""
    values = {name: torch.tensor(n, dtype=torch.float32) for name, n in units.items()}
    return LatticeState(module_of(**values), "all", exponents=dict.fromkeys(units, (0, 0)), threads=1)


def _raw(state: LatticeState, zigzag: bytes) -> bytes:
    """A snapshot of a state's tensors with a stream of our own."""
    return snapshot_module._describe(state) + zlib.compress(zigzag)


def test_the_layout_is_the_documented_one(module_of: Models) -> None:
    """Read by hand, with the standard library alone."""
    base = _whole_numbers(module_of, b=[5, 0, -7], a=[100])
    now = _whole_numbers(module_of, b=[4, 300, -7], a=[-(2**24)])

    data = encode_snapshot(base, now)

    ids = [t.tensor_id for t in base.tensors]
    head = b"ZD\x01" + struct.pack("<I", 2) + struct.pack("<IhQIhQ", ids[0], 0, 1, ids[1], 0, 3)
    assert data[: len(head)] == head
    a = struct.pack("<I", 2 * (2**24 + 100) - 1)
    # differences −1, 300, 0 are 1, 600, 0: first their lowest bytes, then the next
    assert zlib.decompress(data[len(head) :]) == a + bytes([1, 88, 0, 0, 2, 0]) + bytes(6)


@KERNELS
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_it_leads_to_the_replays_bits(
    small_model: Models, weight_bytes: Reader, monkeypatch: pytest.MonkeyPatch, kernel: KernelName, piece: int
) -> None:
    monkeypatch.setattr(state_module, "_PIECE", piece)
    base, now = _pair(small_model)
    late = LatticeState(small_model(), "all", threads=1, kernel=kernel)

    apply_snapshot(late, encode_snapshot(base, now))

    assert weight_bytes(late.model) == weight_bytes(now.model)
    assert late.checksum() == now.checksum()
    late.apply(UPDATES, sign=-1)
    assert weight_bytes(late.model) == weight_bytes(base.model)


def test_rounds_go_on_after_it_and_are_undone_exactly(small_model: Models, weight_bytes: Reader) -> None:
    """The bound that spares range checks was taken before the snapshot moved the weights: it must be taken again."""
    base, now = _pair(small_model)
    late = LatticeState(small_model(), "all", threads=1)
    late.apply([Update(3, 1e-4)])
    late.apply([Update(3, 1e-4)], sign=-1)

    apply_snapshot(late, encode_snapshot(base, now))
    for state in (now, late):
        state.apply([Update(21, 0.05)])

    assert late.checksum() == now.checksum()
    with pytest.raises(LatticeOverflow):
        late.apply([Update(22, 1e3)])
    assert weight_bytes(late.model) == weight_bytes(now.model)


def test_weights_at_the_border_are_told_before_the_next_pass(module_of: Models) -> None:
    state, far = _whole_numbers(module_of, a=[0, 0]), _whole_numbers(module_of, a=[2**24, -(2**24)])
    state.shift([1], np.array([[1]]))
    state.shift([1], np.array([[-1]]))

    apply_snapshot(state, encode_snapshot(state_of_zeros := _whole_numbers(module_of, a=[0, 0]), far))

    assert state.model.a.tolist() == [TOP, -TOP]
    with pytest.raises(LatticeOverflow):
        for seed in range(4):
            state.shift([seed], np.array([[1]]))
    assert state_of_zeros.model.a.tolist() == [0, 0]


def test_counters_and_passes_are_those_of_the_updates_alone(small_model: Models) -> None:
    base, now = _pair(small_model)

    apply_snapshot(base, encode_snapshot(base, now))

    assert (base.passes, base.quanta, base.zero_quanta) == (0, 0, 0)


def test_a_state_without_changes_is_a_few_bytes_and_moves_nothing(small_model: Models, weight_bytes: Reader) -> None:
    base, same = _pair(small_model, [])
    before = weight_bytes(base.model)

    data = encode_snapshot(base, same)
    apply_snapshot(base, data)

    assert len(data) < 7 + 14 * len(base.tensors) + 30
    assert weight_bytes(base.model) == before


def test_tensors_without_elements_and_zeros_are_kept(module_of: Models) -> None:
    base = _whole_numbers(module_of, a=[3, -3], e=[])
    now = _whole_numbers(module_of, a=[0, 0], e=[])

    apply_snapshot(base, encode_snapshot(base, now))

    assert base.model.a.detach().numpy().tobytes() == bytes(8)  # +0.0, never −0.0


ends = st.integers(-(2**24), 2**24)


@settings(deadline=None)
@given(st.lists(st.tuples(ends, ends), min_size=1, max_size=40), st.integers(1, 5))
def test_any_two_states_of_the_lattice_are_joined_exactly(
    module_of: Models, pairs: list[tuple[int, int]], piece: int
) -> None:
    states_before, afters = [before for before, _ in pairs], [after for _, after in pairs]
    state, now = _whole_numbers(module_of, a=states_before), _whole_numbers(module_of, a=afters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "_PIECE", piece)
        data = encode_snapshot(state, now)
        apply_snapshot(state, data)

    assert state.model.a.tolist() == [float(after) for after in afters]
    assert len(data) <= largest_snapshot(state)


@pytest.mark.parametrize(("deviation", "overhead"), [(1, 0.11), (10, 0.03), (300, 0.03)])
def test_it_is_little_larger_than_the_entropy_of_its_differences(
    module_of: Models, deviation: int, overhead: float
) -> None:
    differences = np.rint(np.random.default_rng(0).normal(size=300_000) * deviation).astype(int)
    base = _whole_numbers(module_of, w=[0] * len(differences))
    now = _whole_numbers(module_of, w=differences.tolist())
    _, counts = np.unique(differences, return_counts=True)
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8

    size = len(encode_snapshot(base, now))

    assert entropy <= size <= (1 + overhead) * entropy


def test_what_cannot_be_compressed_stays_below_the_bound(module_of: Models) -> None:
    units = np.random.default_rng(0).integers(-(2**24), 2**24, 100_000).tolist()
    base, now = _whole_numbers(module_of, w=[0] * len(units)), _whole_numbers(module_of, w=units)

    assert 0.75 * 4 * len(units) < len(encode_snapshot(base, now)) <= largest_snapshot(base)


@KERNELS
@pytest.mark.parametrize("units", [[0, 2**24 + 1], [-(2**24) - 1, 0], [2**31 - 1, 0], [0, -(2**31)]])
def test_one_weight_beyond_the_lattice_keeps_all_in_place(
    module_of: Models, units: list[int], kernel: KernelName
) -> None:
    values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0, 0.0])}
    state = LatticeState(module_of(**values), "all", exponents={"a": (0, 0), "b": (0, 0)}, threads=1, kernel=kernel)
    zigzag = [snapshot_module._to_planes(np.array(n, np.int32)) for n in ([5, 5], units)]

    with pytest.raises(LatticeOverflow, match=r"^tensor 'b' would leave .* legal are 16777216\).* another base model"):
        apply_snapshot(state, _raw(state, b"".join(zigzag)))

    assert (state.model.a.tolist(), state.model.b.tolist()) == ([1, 2], [0, 0])
    state.apply([Update(1, 3.0)])


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"a": [0, 0], "b": [0]}, "snapshot has 2 tensors, 1 are trained here"),
        ({"b": [0, 0]}, "where tensor 'a' has"),
        ({"a": [0, 0, 0]}, r"snapshot has .* 3\) where tensor 'a' has .* 2\)"),
    ],
)
def test_other_tensors_are_refused_with_a_word(module_of: Models, tensors: dict[str, list[int]], word: str) -> None:
    state, other = _whole_numbers(module_of, a=[1, 2]), _whole_numbers(module_of, **tensors)

    with pytest.raises(CodecError, match=word):
        apply_snapshot(state, encode_snapshot(other, other))
    with pytest.raises(CodecError, match="train different tensors"):
        encode_snapshot(state, other)

    assert state.model.a.tolist() == [1, 2]


def test_another_grid_is_refused_with_a_word(module_of: Models) -> None:
    fine, coarse = (
        LatticeState(module_of(a=torch.ones(2)), "all", exponents={"a": (k, 0)}, threads=1) for k in (-20, -19)
    )

    with pytest.raises(CodecError, match=r", -19, 2\) where tensor 'a' has .*, -20, 2\)"):
        apply_snapshot(fine, encode_snapshot(coarse, coarse))


def test_another_magic_or_version_is_told(small_model: Models) -> None:
    base, now = _pair(small_model)
    data = encode_snapshot(base, now)

    with pytest.raises(CodecError, match=r"starts with b'XD', expected b'ZD'"):
        apply_snapshot(base, b"X" + data[1:])
    with pytest.raises(CodecError, match="has version 2, this program speaks 1: update the older side"):
        apply_snapshot(base, data[:2] + b"\x02" + data[3:])


def test_every_truncation_is_refused_and_moves_nothing(small_model: Models, weight_bytes: Reader) -> None:
    base, now = _pair(small_model)
    data, before = encode_snapshot(base, now), weight_bytes(base.model)

    for length in range(len(data)):
        with pytest.raises(CodecError):
            apply_snapshot(base, data[:length])

    assert weight_bytes(base.model) == before
    apply_snapshot(base, data)
    assert base.checksum() == now.checksum()


def test_an_altered_bit_is_refused_or_means_nothing(small_model: Models, weight_bytes: Reader) -> None:
    """The last byte before the stream's checksum may have bits that nobody reads."""
    base, now = _pair(small_model)
    data, before = encode_snapshot(base, now), weight_bytes(base.model)
    accepted = 0

    for place, bit in itertools.product(range(len(data)), (0x01, 0x80)):
        try:
            apply_snapshot(base, data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        except (CodecError, LatticeOverflow):
            assert weight_bytes(base.model) == before
        else:
            accepted += 1
            assert weight_bytes(base.model) == weight_bytes(now.model)
            base.apply(UPDATES, sign=-1)

    assert accepted <= 1


@pytest.mark.parametrize(
    ("zigzag", "after", "word"),
    [
        (7, b"", "ends early"),
        (0, b"", "ends early"),
        (9, b"", "more differences than weights"),
        (1 << 24, b"", "more differences than weights"),
        (8, b"x", "goes on after its end"),
        (8, b"x" * 200_000, "goes on after its end"),
    ],
)
def test_a_stream_of_another_length_is_refused(module_of: Models, zigzag: int, after: bytes, word: str) -> None:
    state = _whole_numbers(module_of, a=[1, 2])

    with pytest.raises(CodecError, match=word):
        apply_snapshot(state, _raw(state, bytes(zigzag)) + after)

    assert state.model.a.tolist() == [1, 2]


def test_a_bomb_is_not_unpacked(module_of: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB of zeros in 256 KiB: no call may give more than was asked for."""
    state = _whole_numbers(module_of, a=[1, 2])
    bomb = _raw(state, bytes(1 << 28))
    given_out: list[int] = []
    inflate = snapshot_module._Stream._inflate

    def watch(stream: snapshot_module._Stream, limit: int) -> bytes | None:
        found = inflate(stream, limit)
        given_out.append(len(found or b""))
        return found

    monkeypatch.setattr(snapshot_module._Stream, "_inflate", watch)
    with pytest.raises(CodecError, match="more differences"):
        apply_snapshot(state, bomb)

    assert max(given_out) <= 8
    assert len(given_out) < 8


def test_a_bomb_of_huge_announcements_is_refused_by_its_header(module_of: Models) -> None:
    state = _whole_numbers(module_of, a=[1, 2])

    with pytest.raises(CodecError, match="snapshot has 4294967295 tensors"):
        apply_snapshot(state, b"ZD\x01" + b"\xff" * 40)


@settings(deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["head", "stream", "planes"]))
def test_no_bytes_raise_anything_else_nor_move_a_weight(module_of: Models, data: bytes, place: str) -> None:
    state = _whole_numbers(module_of, a=[1, 2, 3], b=[4])
    before = state.checksum()
    whole = {
        "head": b"ZD\x01" + data,
        "stream": snapshot_module._describe(state) + b"\x78\x01" + data,
        "planes": _raw(state, (data + bytes(16))[:16]),
    }[place]

    try:
        apply_snapshot(state, whole)
    except (CodecError, LatticeOverflow):
        assert state.checksum() == before
    else:
        assert place == "planes"


def test_weights_written_behind_the_lattice_are_refused(module_of: Models) -> None:
    state, far = _whole_numbers(module_of, a=[0, 0]), _whole_numbers(module_of, a=[1, 2])
    data = encode_snapshot(state, far)
    with torch.no_grad():
        state.model.a.add_(1)

    for use in (lambda: apply_snapshot(state, data), lambda: encode_snapshot(state, far)):
        with pytest.raises(UnsupportedModel, match="build it again"):
            use()


def test_it_is_no_write_behind_the_lattice(small_model: Models) -> None:
    base, now = _pair(small_model)

    with torch.inference_mode():
        apply_snapshot(base, encode_snapshot(base, now))
    base.apply(UPDATES, sign=-1)

    assert base.checksum() == LatticeState(small_model(), "all", threads=1).checksum()
