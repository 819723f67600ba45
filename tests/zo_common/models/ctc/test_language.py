"""Multilingual models with an adapter for each language, as MMS: which one is loaded, trained and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_mms

from zo_common.errors import ConfigError, ModelNotFound
from zo_common.lattice.fingerprint import fingerprint
from zo_common.models.export import export_model
from zo_common.models.load import load_model


@pytest.fixture(scope="module")
def mms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters for English and French; Swedish has letters, but no file."""
    return write_mms(tmp_path_factory.mktemp("mms"))


def head(model: Any) -> int:
    """Classes that a model tells apart."""
    return int(model.lm_head.weight.shape[0])


def test_a_language_brings_its_letters_its_head_and_its_layers(mms: Path) -> None:
    own, english, french = (load_model(str(mms), language=code) for code in ("", "en", "fr"))

    assert [head(m.model) for m in (own, english, french)] == [26, 26, 27]
    assert fingerprint(own.model) == fingerprint(english.model) != fingerprint(french.model)
    assert french.processor.tokenizer("é").input_ids == [26]
    assert not any(p.requires_grad for p in french.model.parameters())


@pytest.mark.parametrize("language", ["fra", "FR", " fr-CA ", "French", "fra_x"])
def test_a_language_is_known_by_any_of_its_names(mms: Path, language: str) -> None:
    assert head(load_model(str(mms), language=language).model) == 27


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
