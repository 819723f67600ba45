"""The choice of trained tensors on the speech models people adapt."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable

import pytest
import torch
from small_whisper import small_whisper
from tiny_ctc import KINDS, NORMS, tiny_ctc
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from zo_common.errors import PatternError, TensorIdCollision, UnsupportedModel
from zo_common.lattice import trained as parameters
from zo_common.lattice.state import LatticeState
from zo_common.lattice.trained import PRESETS, check_ids, expand, select, unique_parameters
from zo_common.lattice.update import Update

Models = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def whisper() -> nn.Module:
    """A Whisper of three layers and 16 channels, random weights."""
    return small_whisper()


@pytest.fixture(scope="module")
def wav2vec2() -> nn.Module:
    """A Wav2Vec2 with a CTC head, two layers and 16 channels, random weights."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return Wav2Vec2ForCTC(config).eval()


def _names(model: nn.Module, pattern: str) -> set[str]:
    return set(select(model, pattern))


def _layers(model: str, part: str, count: int, *names: str) -> set[str]:
    return {
        f"{model}.{part}.layers.{layer}.{name}.{leaf}"
        for layer in range(count)
        for name in names
        for leaf in ("weight", "bias")
    }


class TestWhisper:
    def test_all_is_every_parameter_with_the_tied_projection_once(self, whisper: nn.Module) -> None:
        found = _names(whisper, "all")

        assert found == {name for name, _ in whisper.named_parameters()}
        assert "model.decoder.embed_tokens.weight" in found
        assert "proj_out.weight" not in found

    def test_encoder(self, whisper: nn.Module) -> None:
        expected = {n for n, _ in whisper.named_parameters() if n.startswith("model.encoder.")}

        assert _names(whisper, "encoder") == expected - {"model.encoder.embed_positions.weight"}

    def test_encoder_ffn(self, whisper: nn.Module) -> None:
        assert _names(whisper, "encoder-ffn") == _layers("model", "encoder", 3, "fc1", "fc2")

    def test_encoder_attention_has_no_norms_and_no_cross_attention(self, whisper: nn.Module) -> None:
        found = _names(whisper, "encoder-attention")

        projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
        without_bias = {n for n in _layers("model", "encoder", 3, "self_attn.k_proj") if n.endswith("bias")}
        assert found == _layers("model", "encoder", 3, *projections) - without_bias

    def test_encoder_conv(self, whisper: nn.Module) -> None:
        expected = {f"model.encoder.conv{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}

        assert _names(whisper, "encoder-conv") == expected

    def test_encoder_early(self, whisper: nn.Module) -> None:
        first_convolution = {"model.encoder.conv1.weight", "model.encoder.conv1.bias"}

        assert _names(whisper, "encoder-early") == first_convolution | _layers("model", "encoder", 2, "fc1", "fc2")

    def test_encoder_residual_bias_is_three_layers_of_a_small_encoder(self, whisper: nn.Module) -> None:
        expected = {
            f"model.encoder.layers.{layer}.{module}.bias"
            for layer in range(3)
            for module in ("fc2", "self_attn.out_proj")
        }

        assert _names(whisper, "encoder-residual-bias") == expected

    def test_decoder_leaves_the_embeddings(self, whisper: nn.Module) -> None:
        expected = {n for n, _ in whisper.named_parameters() if n.startswith("model.decoder.")}
        embeddings = {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}

        assert _names(whisper, "decoder") == expected - embeddings

    def test_decoder_ffn(self, whisper: nn.Module) -> None:
        assert _names(whisper, "decoder-ffn") == _layers("model", "decoder", 3, "fc1", "fc2")

    def test_norm_is_every_layer_norm(self, whisper: nn.Module) -> None:
        expected = {
            f"{name}.{leaf}"
            for name, module in whisper.named_modules()
            if isinstance(module, nn.LayerNorm)
            for leaf in ("weight", "bias")
        }

        assert _names(whisper, "norm") == expected

    def test_bias(self, whisper: nn.Module) -> None:
        assert _names(whisper, "bias") == {n for n, _ in whisper.named_parameters() if n.endswith(".bias")}


class TestWav2Vec2:
    def test_encoder_early(self, wav2vec2: nn.Module) -> None:
        feed_forward = {
            f"wav2vec2.encoder.layers.{layer}.feed_forward.{part}.{leaf}"
            for layer in (0, 1)
            for part in ("intermediate_dense", "output_dense")
            for leaf in ("weight", "bias")
        }

        convolution = {n for n in _names(wav2vec2, "all") if ".conv_layers.0.conv." in n}
        assert convolution
        assert _names(wav2vec2, "encoder-early") == feed_forward | convolution

    def test_encoder(self, wav2vec2: nn.Module) -> None:
        expected = {n for n, _ in wav2vec2.named_parameters() if n.startswith("wav2vec2.encoder.")}

        assert _names(wav2vec2, "encoder") == expected

    def test_encoder_ffn(self, wav2vec2: nn.Module) -> None:
        dense = ("feed_forward.intermediate_dense", "feed_forward.output_dense")

        assert _names(wav2vec2, "encoder-ffn") == _layers("wav2vec2", "encoder", 2, *dense)

    def test_encoder_attention(self, wav2vec2: nn.Module) -> None:
        projections = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj")

        assert _names(wav2vec2, "encoder-attention") == _layers("wav2vec2", "encoder", 2, *projections)

    def test_encoder_conv_is_the_feature_extractor(self, wav2vec2: nn.Module) -> None:
        expected = {n for n, _ in wav2vec2.named_parameters() if n.startswith("wav2vec2.feature_extractor.")}

        assert _names(wav2vec2, "encoder-conv") == expected

    def test_norm_covers_the_layer_norms(self, wav2vec2: nn.Module) -> None:
        layer_norms = {
            f"{name}.weight" for name, module in wav2vec2.named_modules() if isinstance(module, nn.LayerNorm)
        }

        assert layer_norms <= _names(wav2vec2, "norm")
        assert not any("proj" in n and "projection" not in n for n in _names(wav2vec2, "norm"))

    @pytest.mark.parametrize("pattern", ["decoder", "decoder-ffn"])
    def test_a_model_without_decoder_refuses_its_presets(self, wav2vec2: nn.Module, pattern: str) -> None:
        with pytest.raises(PatternError, match=f"'{pattern}' matches none") as caught:
            select(wav2vec2, pattern)

        _, named = str(caught.value).split("one of the presets ")
        assert {"all", "encoder-early"} <= set(named.removesuffix("?").split(", "))  # each has tensors in this model
        assert all(select(wav2vec2, preset) for preset in named.removesuffix("?").split(", "))

    def test_parametrised_weights_can_be_trained(self, wav2vec2: nn.Module) -> None:
        state = LatticeState(wav2vec2, "encoder", threads=1)
        checksum = state.checksum()

        state.apply([Update(1, 1e-3)])
        moved = state.checksum()
        state.apply([Update(1, 1e-3)], sign=-1)

        assert any("parametrizations" in t.name for t in state.tensors)
        assert moved != checksum
        state.expect_checksum(checksum)


class TestAdaptationPresets:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("norm", NORMS)
    def test_norms_of_ctc_models(self, kind: str, norm: str) -> None:
        model = tiny_ctc(kind, norm)
        layers = (nn.LayerNorm, nn.GroupNorm)
        expected = {
            f"{n}.{leaf}" for n, m in model.named_modules() if isinstance(m, layers) for leaf in ("weight", "bias")
        }

        assert _names(model, "norms") == _names(model, "norm") == expected
        assert f"{kind}.feature_projection.layer_norm.weight" in expected
        assert f"{kind}.feature_extractor.conv_layers.0.layer_norm.weight" in expected

    @pytest.mark.parametrize("kind", KINDS)
    def test_norms_and_features(self, kind: str) -> None:
        model = tiny_ctc(kind)
        front = (f"{kind}.feature_extractor.", f"{kind}.feature_projection.")

        found = _names(model, "norms+features")

        assert found == _names(model, "norms") | {n for n, _ in model.named_parameters() if n.startswith(front)}
        assert not any("attention" in n or "pos_conv" in n or "lm_head" in n for n in found)

    def test_norms_and_biases(self) -> None:
        model = tiny_ctc()

        assert _names(model, "norms+biases") == _names(model, "norms") | _names(model, "bias")

    def test_norms_and_features_of_the_base_model_are_those_of_the_paper(self) -> None:
        with torch.device("meta"):
            model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        patterns = expand("norms+features")
        chosen = [n for n in sizes if any(fnmatch.fnmatchcase(n, p) for p in patterns)]

        assert sum(sizes[n] for n in chosen) == 4_633_856


def test_the_norm_at_the_end_of_the_encoder(whisper: nn.Module) -> None:
    assert _names(whisper, "encoder-norm") == {f"model.encoder.layer_norm.{leaf}" for leaf in ("weight", "bias")}


def test_names_come_in_order_whatever_the_pattern(whisper: nn.Module) -> None:
    for pattern in [*PRESETS, "*fc2*,*fc1*"]:
        names = list(select(whisper, pattern))
        assert names == sorted(names)


def test_patterns_are_unions_less_exclusions(whisper: nn.Module) -> None:
    found = _names(whisper, " *encoder.layers.0.* , *encoder.conv1.*, !*.bias ,!*attn*")

    assert found == {
        "model.encoder.conv1.weight",
        "model.encoder.layers.0.fc1.weight",
        "model.encoder.layers.0.fc2.weight",
        "model.encoder.layers.0.final_layer_norm.weight",
    }


def test_an_exact_name_is_a_pattern(whisper: nn.Module) -> None:
    assert _names(whisper, "model.encoder.conv1.bias") == {"model.encoder.conv1.bias"}


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("encoder-fnn", "did you mean 'encoder-ffn'"),
        ("encodr", "did you mean 'encoder'"),
        ("", "presets"),
        ("@", "all,"),
    ],
)
def test_nothing_matches(whisper: nn.Module, pattern: str, hint: str) -> None:
    with pytest.raises(PatternError, match="matches none") as caught:
        select(whisper, pattern)

    assert hint in str(caught.value)


def test_colliding_tensor_ids_are_refused(small_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "tensor_id", lambda name: 7 if name.endswith("bias") else len(name))

    with pytest.raises(TensorIdCollision, match=r"'0\.bias' and '2.bias' share tensor id 7"):
        select(small_model(), "*bias")
    assert _names(small_model(), "0.*") == {"0.weight", "0.bias"}


def test_ids_of_plain_names_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    check_ids(["a", "b"])
    monkeypatch.setattr(parameters, "tensor_id", lambda name: 1)

    with pytest.raises(TensorIdCollision):
        check_ids(["a", "b"])


def test_tied_tensors_go_by_their_alphabetically_first_name() -> None:
    model = nn.Module()
    for name in ("z", "b", "m"):
        model.add_module(name, nn.Linear(2, 2, bias=False))
    model.z.weight = model.b.weight

    assert list(unique_parameters(model)) == ["b.weight", "m.weight"]
    with pytest.raises(PatternError):
        select(model, "z.*")


def test_different_parameters_on_one_storage_are_one_tensor() -> None:
    model = nn.Module()
    for name in ("z", "b", "m"):
        model.add_module(name, nn.Linear(2, 2, bias=False))
    model.z.weight = nn.Parameter(model.b.weight.data)
    assert model.z.weight is not model.b.weight
    before = model.b.weight.detach().clone()

    state = LatticeState(model, "all", threads=1)
    state.apply([Update(1, 0.5)])

    assert [t.name for t in state.tensors] == ["b.weight", "m.weight"]
    assert torch.equal(model.z.weight, model.b.weight)
    assert torch.equal((model.b.weight - before).abs().round(decimals=3), torch.full((2, 2), 0.5))


def test_neighbours_in_one_buffer_and_empty_tensors_stay_apart() -> None:
    buffer = torch.ones(6)
    model = nn.Module()
    for name, part in {"a": buffer[:3], "b": buffer[3:], "c": torch.empty(0), "d": torch.empty(0)}.items():
        model.register_parameter(name, nn.Parameter(part))

    assert list(unique_parameters(model)) == ["a", "b", "c", "d"]


def test_presets_combine_with_patterns_and_with_each_other(whisper: nn.Module) -> None:
    ffn = _layers("model", "encoder", 3, "fc1", "fc2")
    encoder_conv = _names(whisper, "encoder-conv")

    assert _names(whisper, "encoder-ffn,!*bias") == {n for n in ffn if n.endswith(".weight")}
    assert _names(whisper, "!*.layers.1.*, encoder-ffn") == {n for n in ffn if ".layers.1." not in n}
    assert _names(whisper, "encoder-conv,encoder-ffn") == ffn | encoder_conv
    assert _names(whisper, "encoder-ffn,model.decoder.layer_norm.bias") == ffn | {"model.decoder.layer_norm.bias"}
    assert _names(whisper, "encoder,decoder") == _names(whisper, "encoder") | _names(whisper, "decoder")


def test_presets_expand_in_place() -> None:
    assert expand(" a* ,bias,, !b ") == ("a*", "*.bias", "bias", "!b")
    assert expand("encoder") == PRESETS["encoder"]
    assert expand(" , ") == ()


def test_integer_tensors_are_refused_only_where_they_are_trained() -> None:
    model = nn.Module()
    model.table = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    model.weight = nn.Parameter(torch.zeros(2))

    assert _names(model, "weight") == {"weight"}
    with pytest.raises(UnsupportedModel, match=r"'table' has dtype torch\.int8"):
        select(model, "all")
