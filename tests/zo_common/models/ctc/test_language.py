"""Multilingual models with an adapter for each language, as MMS: which one is loaded, trained and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zo_common.errors import ConfigError, ModelNotFound
from zo_common.lattice.fingerprint import fingerprint
from zo_common.models.ctc.language import adapter_tensors
from zo_common.models.export import export_model
from zo_common.models.load import load_model

LETTERS = {"eng": "abc", "fra": "abcdé", "swe": "abå"}


@pytest.fixture(scope="module")
def mms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wav2Vec2 with an English head and adapters for two more languages, of which one file is missing."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    target = tmp_path_factory.mktemp("mms")
    tokens = {code: ["<pad>", "<s>", "</s>", "<unk>", "|", *letters] for code, letters in LETTERS.items()}
    nested = {code: {t: i for i, t in enumerate(known)} for code, known in tokens.items()}
    (target / "vocab.json").write_text(json.dumps(nested))
    tokenizer = Wav2Vec2CTCTokenizer(str(target / "vocab.json"), target_lang="eng")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(target)
    for seed, code in enumerate(("fra", "eng")):
        torch.manual_seed(seed)
        config = Wav2Vec2Config(
            vocab_size=len(tokens[code]),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            adapter_attn_dim=4,
            pad_token_id=0,
        )
        model = Wav2Vec2ForCTC(config)
        save_file({n: t.clone() for n, t in adapter_tensors(model).items()}, target / f"adapter.{code}.safetensors")
    model.save_pretrained(target)
    return target


def head(model: Any) -> int:
    """Classes that a model tells apart."""
    return int(model.lm_head.weight.shape[0])


def test_a_language_brings_its_letters_its_head_and_its_layers(mms: Path) -> None:
    own, english, french = (load_model(str(mms), language=code) for code in ("", "en", "fr"))

    assert [head(m.model) for m in (own, english, french)] == [8, 8, 10]
    assert fingerprint(own.model) == fingerprint(english.model) != fingerprint(french.model)
    assert french.processor.tokenizer("é").input_ids == [9]
    assert not any(p.requires_grad for p in french.model.parameters())


def test_an_export_in_a_language_is_read_back_in_it(mms: Path, tmp_path: Path) -> None:
    french = load_model(str(mms), language="fra")
    with torch.no_grad():
        french.model.lm_head.weight.add_(1.0)

    again = load_model(str(export_model(french.model, french.processor, tmp_path / "model")), language="fra")

    assert fingerprint(again.model) == fingerprint(french.model)


def test_what_there_is_not_is_one_sentence(mms: Path) -> None:
    with pytest.raises(ConfigError, match=r"language is 'de', .* has adapters for 3 others: use a code"):
        load_model(str(mms), language="de")
    with pytest.raises(ModelNotFound, match=r"has no adapter.swe.safetensors, which language 'sv' needs"):
        load_model(str(mms), language="sv")
