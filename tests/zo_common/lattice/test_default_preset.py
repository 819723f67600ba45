"""The default preset on each family, and what a calibration compares it with."""

from __future__ import annotations

import pytest
import torch
from small_whisper import small_whisper
from tiny_ctc import KINDS, tiny_ctc
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, WhisperConfig, WhisperForConditionalGeneration

from zo_common.errors import PatternError
from zo_common.lattice.groups import shapes_of, tensor_groups
from zo_common.lattice.trained import DEFAULT, measured_groups, select, unique_parameters


def _names(model: nn.Module, pattern: str) -> set[str]:
    return set(select(model, pattern))


def _trained(config: WhisperConfig | Wav2Vec2Config, pattern: str) -> dict[str, int]:
    """Names and sizes of what is trained in a model without weights."""
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config) if isinstance(config, WhisperConfig) else Wav2Vec2ForCTC(config)
    return {name: parameter.numel() for name, parameter in select(model, pattern).items()}


class TestEncoderResidualBias:
    @pytest.mark.parametrize(
        ("layers", "width", "trained", "weights"),
        [
            (4, 384, 3, 2304),  # tiny
            (6, 512, 3, 3072),  # base
            (12, 768, 6, 9216),  # small
            (2, 16, 2, 64),  # all there are
        ],
    )
    def test_the_first_half_of_whispers_layers_and_at_least_three(
        self, layers: int, width: int, trained: int, weights: int
    ) -> None:
        config = WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=8,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            vocab_size=60,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
        )

        sizes = _trained(config, "encoder-residual-bias")

        modules = ("fc2", "self_attn.out_proj")
        assert set(sizes) == {f"model.encoder.layers.{n}.{m}.bias" for n in range(trained) for m in modules}
        assert sum(sizes.values()) == weights

    def test_wav2vec2_base_trains_the_gains_of_its_norms(self) -> None:
        sizes = _trained(Wav2Vec2Config(vocab_size=32), "encoder-residual-bias")

        layers = {
            f"wav2vec2.encoder.layers.{n}.{m}.weight" for n in range(12) for m in ("layer_norm", "final_layer_norm")
        }
        others = {"encoder.layer_norm", "feature_extractor.conv_layers.0.layer_norm", "feature_projection.layer_norm"}
        assert set(sizes) == layers | {f"wav2vec2.{name}.weight" for name in others}
        assert sum(sizes.values()) == 25 * 768 + 2 * 512

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_ctc_model_has_gains(self, kind: str) -> None:
        found = _names(tiny_ctc(kind), "encoder-residual-bias")

        assert found and all(n.startswith(f"{kind}.") and n.endswith("layer_norm.weight") for n in found)
        assert any(".encoder.layers." in n for n in found)

    def test_it_combines_with_patterns(self) -> None:
        found = _names(small_whisper(), "encoder-residual-bias,!*fc2*,model.encoder.conv1.bias")

        assert found == {"model.encoder.conv1.bias"} | {
            f"model.encoder.layers.{n}.self_attn.out_proj.bias" for n in range(3)
        }

    def test_a_model_without_encoder_layers_is_told_what_there_is(self) -> None:
        with pytest.raises(PatternError, match="'encoder-residual-bias' matches none of the model's 2 tensors"):
            select(nn.Linear(2, 2), "encoder-residual-bias")


class TestWithTheDecoder:
    def test_whisper_has_the_decoders_values_and_feed_forward_outputs_besides(self) -> None:
        model = small_whisper()

        found = _names(model, "encoder-decoder-bias")

        more = found - _names(model, "encoder-residual-bias")
        layers = range(model.config.decoder_layers)
        modules = ("fc2", "self_attn.v_proj", "encoder_attn.v_proj")
        assert more == {f"model.decoder.layers.{n}.{m}.bias" for n in layers for m in modules}
        assert found > more

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_model_without_one_has_the_default(self, kind: str) -> None:
        model = tiny_ctc(kind)

        assert _names(model, "encoder-decoder-bias") == _names(model, "encoder-residual-bias")

    def test_other_names_are_found_by_their_shapes(self) -> None:
        named = small_whisper()
        model = nn.ModuleDict({"listener": named.model.encoder, "decoder": named.model.decoder})
        for layer in model["decoder"].layers:
            layer.up, layer.down = layer.fc1, layer.fc2
            del layer.fc1, layer.fc2
            for attention in (layer.self_attn, layer.encoder_attn):
                attention.values = attention.v_proj
                del attention.v_proj

        more = {n for n in _names(model, "encoder-decoder-bias") if n.startswith("decoder.")}

        layers = range(named.config.decoder_layers)
        written = ("self_attn.out_proj", "encoder_attn.out_proj")
        assert more >= {f"decoder.layers.{n}.{m}.bias" for n in layers for m in written}
        assert not any("values" in name or ".up." in name for name in more)


class TestMeasuredGroups:
    @pytest.mark.parametrize("model", [small_whisper(), *map(tiny_ctc, KINDS)], ids=["whisper", *KINDS])
    def test_the_default_is_compared_with_groups_that_share_nothing_with_it(self, model: nn.Module) -> None:
        found = measured_groups(model)
        default = set(found.pop(DEFAULT))
        assert default == _names(model, DEFAULT)
        assert found and not any(default & set(names) for names in found.values())
        whole = tensor_groups(shapes_of(unique_parameters(model)))
        assert found.items() <= whole.items()
        assert {name for group in whole.keys() - found.keys() for name in whole[group]} >= default

    def test_a_model_that_the_preset_does_not_know_has_groups_alone(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        assert measured_groups(model) == tensor_groups(shapes_of(unique_parameters(model)))
