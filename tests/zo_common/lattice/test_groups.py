"""Groups of tensors by kind and place, and their names in patterns."""

from __future__ import annotations

import pytest
from small_whisper import small_whisper
from tiny_ctc import tiny_ctc
from torch import nn

from zo_common.errors import PatternError
from zo_common.lattice.groups import shapes_of, tensor_groups
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import adjustments, select, unique_parameters


def whisper(layers: int = 4) -> nn.Module:
    return small_whisper(layers, 2)


def groups_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return tensor_groups(shapes_of(unique_parameters(model)))


@pytest.mark.parametrize("layers", [2, 4, 8])
def test_residual_biases_are_the_first_group(layers: int) -> None:
    model = whisper(layers)
    assert set(groups_of(model)["encoder-first/residual-bias"]) == set(select(model, "encoder-residual-bias"))


@pytest.mark.parametrize("model", [whisper(), tiny_ctc("wav2vec2")], ids=["whisper", "ctc"])
def test_every_tensor_but_embeddings_is_in_one_group(model: nn.Module) -> None:
    found = groups_of(model)
    members = [name for names in found.values() for name in names]
    left = set(unique_parameters(model)) - set(members)
    assert len(members) == len(set(members))
    assert all("embed" in name for name in left)


def test_kinds_follow_from_shapes() -> None:
    found = groups_of(whisper())
    assert found["front/convolution"] == tuple(
        f"model.encoder.conv{n}.{leaf}" for n in (1, 2) for leaf in ("bias", "weight")
    )
    assert all(name.endswith(".weight") for name in found["encoder-first/attention"])
    assert "model.encoder.layers.0.final_layer_norm.bias" in found["encoder-first/norm"]
    assert "model.encoder.layers.0.fc1.bias" in found["encoder-first/bias"]
    assert "model.decoder.layer_norm.weight" in found["rest/gain"]


def test_a_group_is_a_part_of_a_pattern() -> None:
    model = whisper()
    names = set(select(model, "encoder-first/norm@-2,encoder-last/bias@1^3,*conv1.bias"))
    found = groups_of(model)
    assert names == {*found["encoder-first/norm"], *found["encoder-last/bias"], "model.encoder.conv1.bias"}
    adjusted = adjustments(model, "encoder-first/norm@-2,encoder-last/bias@1^3,*conv1.bias")
    assert {adjusted[name] for name in found["encoder-first/norm"]} == {(-2, 0)}
    assert {adjusted[name] for name in found["encoder-last/bias"]} == {(1, 3)}
    assert "model.encoder.conv1.bias" not in adjusted


def test_suffixes_change_the_exponents_alone() -> None:
    plain = LatticeState(whisper(), "encoder-first/norm").exponents
    changed = LatticeState(whisper(), "encoder-first/norm@-2^3").exponents
    assert {n: (g + 3, s - 2) for n, (g, s) in plain.items()} == changed


@pytest.mark.parametrize("pattern", ["a@", "a@x", "a@99", "a@1^9", "a@1@2"])
def test_a_wrong_suffix_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="@SCALE"):
        select(whisper(), pattern)


def test_an_unknown_group_matches_nothing() -> None:
    with pytest.raises(PatternError, match="matches none"):
        select(whisper(), "encoder-first/anything")
