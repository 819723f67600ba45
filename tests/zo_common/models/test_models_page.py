"""docs/models.md: each row of its tables of classes is one that is loaded, and tested or said not to be."""

from __future__ import annotations

import re
from pathlib import Path

from tiny_models import CTC, TOKENS

from zo_common.models.load import CAUSAL, SEQ2SEQ, ctc_classes

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """Model type → its row, of the table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return {match[1]: match[0] for match in re.finditer(r"^\| `((?!model_type)[\w-]+)` \|.*$", section, re.MULTILINE)}


def test_every_ctc_class_has_a_row() -> None:
    found = rows("CTC")

    assert set(found) == set(ctc_classes())
    assert {kind for kind in found if kind not in CTC} == {"granite_speech5_ctc"}


def test_every_class_that_writes_tokens_has_a_row() -> None:
    found = rows("Models that generate tokens")

    assert set(found) == {"whisper", *SEQ2SEQ, *CAUSAL}
    assert {kind for kind, row in found.items() if "not tested" in row} == set(found) - {"whisper", *TOKENS}
