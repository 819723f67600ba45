"""A resident model that takes ledgers on and off: the bits, what is refused, and what memory is taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dialects import dialect_of
from small_whisper import small_whisper
from torch import nn

from zo_common import AdaptedModel, combine, load_adapted, replay
from zo_common.adapters.base_lattice import BaseLattice
from zo_common.adapters.dialect import Dialect
from zo_common.errors import ChecksumMismatch, LatticeOverflow, LedgerError, WrongBaseModel
from zo_common.ledger.file import LEDGER_NAME, LedgerFile, write_ledger
from zo_common.ledger.ledger import Ledger
from zo_common.ledger.record import Record
from zo_common.models.load import LoadedModel

Bits = dict[str, bytes]
FIRST = "encoder-residual-bias"


def bits(model: nn.Module) -> Bits:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def replayed(base: nn.Module, ledger: Ledger) -> Bits:
    """What the ledger commands make of base and ledger."""
    fresh = copy.deepcopy(base)
    replay(fresh, ledger)
    return bits(fresh)


def resident(base: nn.Module, **settings: int) -> AdaptedModel:
    return load_adapted(LoadedModel(copy.deepcopy(base), None), None, **settings)


@pytest.fixture(scope="module", params=["float32", "float16"])
def base(request: pytest.FixtureRequest) -> nn.Module:
    """A base in the precision of its checkpoint: in float32 most weights are off their grid, in float16 few."""
    model = small_whisper().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, request.param)).float()
    model.get_parameter("model.encoder.layers.0.fc1.weight").data[0, :2] = torch.tensor([-0.0, 3e-9])
    return model


@pytest.fixture(scope="module")
def ledgers(base: nn.Module) -> list[Ledger]:
    """Of two dialects on one lattice, one on a wider grid, and one of other tensors."""
    return [
        dialect_of(base, 1, pattern="encoder"),
        dialect_of(base, 2, pattern="encoder", rounds=7),
        dialect_of(base, 3, pattern=FIRST, scale="unit-wide"),
        dialect_of(base, 4, pattern="decoder,*fc1*", scale="rms"),
    ]


@pytest.mark.parametrize("memory", [1 << 20, 0])
def test_any_way_through_the_dialects_gives_the_bits_of_a_replay(
    base: nn.Module, ledgers: list[Ledger], memory: int
) -> None:
    adapted = resident(base, memory=memory)
    places = [parameter.data_ptr() for parameter in adapted.model.parameters()]
    expected = [replayed(base, ledger) for ledger in ledgers]
    before = bits(base)
    for chosen in (0, 1, 0, 2, 3, None, 3, 1, None, 0, 0, 2, None):
        ledger = None if chosen is None else ledgers[chosen]
        checksum = adapted.switch(ledger)
        assert adapted.ledger is ledger and adapted.checksum == checksum
        assert bits(adapted.model) == (before if chosen is None else expected[chosen])
        assert checksum == (None if ledger is None else ledger.records[-1].checksum)

    assert [parameter.data_ptr() for parameter in adapted.model.parameters()] == places  # nothing was copied
    assert adapted.remembered <= memory
    assert bool(adapted.remembered) is bool(memory)


def test_the_base_has_the_checkpoints_bits_not_the_grids(base: nn.Module, ledgers: list[Ledger]) -> None:
    adapted = resident(base)
    adapted.switch(ledgers[0])
    assert bits(adapted.model) != bits(base)
    adapted.switch(None)

    assert bits(adapted.model) == bits(base)
    assert adapted.model.get_parameter("model.encoder.layers.0.fc1.weight")[0, 0].signbit()


def test_another_bases_ledger_is_refused_and_nothing_moves(base: nn.Module, ledgers: list[Ledger]) -> None:
    stranger = dialect_of(small_whisper(encoder_layers=4).requires_grad_(False), 1, model="another-base")
    adapted = resident(base)
    adapted.switch(ledgers[0])
    before = bits(adapted.model)

    with pytest.raises(WrongBaseModel, match=r"fingerprint is .* made on .* \(another-base\): load that model"):
        adapted.switch(stranger)

    assert bits(adapted.model) == before and adapted.ledger is ledgers[0]


@pytest.mark.parametrize("on", [True, False])
def test_a_ledger_that_misses_its_checksum_leaves_what_was_on(base: nn.Module, ledgers: list[Ledger], on: bool) -> None:
    wrong = dialect_of(base, 5, pattern="decoder")
    damaged = Ledger(wrong.header, (*wrong.records[:-1], replace(wrong.records[-1], checksum=1)))
    adapted = resident(base)
    adapted.switch(ledgers[0] if on else None)

    with pytest.raises(ChecksumMismatch, match="the ledger records 0000000000000001"):
        adapted.switch(damaged)

    assert bits(adapted.model) == (replayed(base, ledgers[0]) if on else bits(base))
    adapted.switch(ledgers[1])
    assert bits(adapted.model) == replayed(base, ledgers[1])


def test_a_ledger_that_leads_outside_leaves_what_was_on(base: nn.Module, ledgers: list[Ledger]) -> None:
    far = dialect_of(base, 6, rounds=1, pattern=FIRST)
    coefficients = far.records[0].contributions[0].coefficients * 0 + 1e4
    outside = replace(far.records[0].contributions[0], coefficients=coefficients)
    adapted = resident(base)
    adapted.switch(ledgers[0])

    with pytest.raises(LatticeOverflow, match="lower the learning rate"):
        adapted.switch(Ledger(far.header, (Record(1, 0, (outside,)),)))

    assert bits(adapted.model) == replayed(base, ledgers[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: (), "trains no tensor"),
        (lambda tensors: (replace(tensors[0], name="*"),), r"trains '\*' in a shape"),
        (lambda tensors: (replace(tensors[0], shape=(1, 2)), *tensors[1:]), "in a shape that the model does not have"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(base: nn.Module, ledgers: list[Ledger], change, said: str) -> None:
    header = replace(ledgers[0].header, tensors=change(ledgers[0].header.tensors))
    adapted = resident(base)

    with pytest.raises(LedgerError, match=said):
        adapted.switch(Ledger(header))

    assert bits(adapted.model) == bits(base)


def test_a_grid_that_is_too_fine_is_refused(base: nn.Module, ledgers: list[Ledger]) -> None:
    fine = tuple(replace(tensor, grid_exponent=tensor.grid_exponent - 20) for tensor in ledgers[0].header.tensors)
    adapted = resident(base)

    with pytest.raises(LatticeOverflow, match="does not fit the given grid"):
        adapted.switch(Ledger(replace(ledgers[0].header, tensors=fine)))

    assert bits(adapted.model) == bits(base)


@pytest.mark.parametrize("to", [None, 1])
def test_weights_that_something_else_has_moved_are_told(base: nn.Module, ledgers: list[Ledger], to: int | None) -> None:
    adapted = resident(base)
    adapted.switch(ledgers[0])
    adapted.model.get_parameter("model.encoder.layers.0.fc1.weight").data[3, 3] += 0.5  # unseen by torch's versions

    with pytest.raises(ChecksumMismatch):
        adapted.switch(None if to is None else ledgers[to])
    with pytest.raises(ChecksumMismatch, match="load the model again"):
        adapted.switch(ledgers[0])


def test_an_interrupted_switch_is_told(base: nn.Module, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = resident(base)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Dialect, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapted.switch(ledgers[0])

    with pytest.raises(ChecksumMismatch, match="between two ledgers, expected one: load the model again"):
        adapted.switch(None)


def test_a_ledger_without_checksums_has_one_after_its_replay(base: nn.Module, ledgers: list[Ledger]) -> None:
    joined = combine(ledgers[:2], [1.0, -1.0], "now")
    adapted = resident(base)

    first = adapted.switch(joined)
    adapted.switch(ledgers[1])

    assert first and adapted.switch(joined) == first
    assert bits(adapted.model) == replayed(base, joined)


def test_sums_that_were_not_used_for_longest_go_first(base: nn.Module, ledgers: list[Ledger]) -> None:
    adapted = resident(base)
    adapted.switch(ledgers[0])
    one = adapted.remembered
    room = resident(base, memory=5 * sum(p.numel() for p in base.parameters()))
    for ledger in (*ledgers, *[dialect_of(base, seed, pattern="encoder") for seed in range(10, 20)]):
        room.switch(ledger)
        assert bits(room.model) == replayed(base, ledger)
    room.switch(None)

    assert one < room.remembered <= 5 * sum(p.numel() for p in base.parameters())
    assert bits(room.model) == bits(base)


def test_files_and_folders(base: nn.Module, ledgers: list[Ledger], tmp_path: Path) -> None:
    write_ledger(tmp_path / LEDGER_NAME, ledgers[0])
    adapted = load_adapted(LoadedModel(copy.deepcopy(base), None), tmp_path)
    assert bits(adapted.model) == replayed(base, ledgers[0])
    assert adapted.switch(tmp_path / LEDGER_NAME) == adapted.checksum

    write_ledger(tmp_path / "other.zo", ledgers[3])
    adapted.switch(str(tmp_path / "other.zo"))
    assert bits(adapted.model) == replayed(base, ledgers[3])

    (tmp_path / LEDGER_NAME).unlink()
    with pytest.raises(LedgerError, match=r"holds no ledger\.zo"):
        adapted.switch(tmp_path)
    assert bits(adapted.model) == replayed(base, ledgers[3])


def test_a_run_that_has_gone_on_is_read_again(base: nn.Module, tmp_path: Path) -> None:
    whole = dialect_of(base, 8, rounds=5)
    write_ledger(tmp_path / LEDGER_NAME, Ledger(whole.header, whole.records[:2]))
    adapted = load_adapted(LoadedModel(copy.deepcopy(base), None), tmp_path)
    LedgerFile.open(tmp_path / LEDGER_NAME).extend(whole.records[2:])

    assert adapted.switch(tmp_path) == whole.records[-1].checksum
    assert bits(adapted.model) == replayed(base, whole)


def test_what_is_no_ledger_is_one_sentence(base: nn.Module, tmp_path: Path) -> None:
    adapted = resident(base)
    for source, said in (
        (tmp_path, "holds no ledger.zo, expected a run's folder"),
        (tmp_path / "gone.zo", "there is no ledger .* check it"),
        (Path(__file__), "a ledger starts with"),
    ):
        with pytest.raises(LedgerError, match=said):
            adapted.switch(source)
    assert bits(adapted.model) == bits(base)


def test_a_lattice_is_built_once(base: nn.Module, ledgers: list[Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = resident(base)
    for ledger in ledgers:
        adapted.switch(ledger)
    built: list[object] = []
    monkeypatch.setattr(BaseLattice, "__init__", lambda *arguments: built.append(arguments))

    for ledger in ledgers:
        adapted.switch(ledger)

    assert built == []
