"""The model card of an adapted model: metadata for the Hugging Face hub, and a summary for readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zo_common.models.hub import is_hub_id
from zo_common.models.whisper.languages import whisper_code


def model_card(
    base: str,
    language: str,
    *,
    rounds: int,
    trained: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> str:
    """Return Markdown with the hub's metadata; folders of this machine are not named.

    Args:
        base: hub id or folder of the base model.
        language: code or English name.
        trained: the choice of tensors.
        before, after: summaries of evaluations (`zo_common.speech.evaluation.Evaluation.summary`).
    """
    from huggingface_hub import ModelCardData

    on_hub = is_hub_id(base) and "/" in base
    rated = bool(before and after and "wer" in before and "wer" in after)
    headline = (after or {}).get("headline", "wer")
    data = ModelCardData(
        language=whisper_code(language),
        base_model=base if on_hub else None,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        metrics=[headline] if rated else None,
        tags=["zeroth-order", "federated"],
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {base if on_hub else Path(base).name}, adapted",
        f"{rounds} rounds of federated zeroth-order fine-tuning: devices sent seeds and scalars, no speech and no "
        f"weights. Trained tensors: `{trained}`; language: {whisper_code(language)}.",
    ]
    if rated and before and after:
        lines.append(rates_table(before, after, headline))
    return "\n\n".join(lines) + "\n"


def rates_table(before: Mapping[str, Any], after: Mapping[str, Any], headline: str) -> str:
    """Return a table of error rates, the language's headline first."""
    order = ("cer", "raw_cer", "wer", "raw_wer") if headline == "cer" else ("wer", "raw_wer", "cer", "raw_cer")
    names = [rate for rate in order if rate in before and rate in after]
    lines = [
        f"Held-out speech, {after['utterances']} utterances; texts through {after['normalizer']}, raw ones as they "
        "are:",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {_label(name)} | {before[name]:.1%} | {after[name]:.1%} |" for name in names),
    ]
    return "\n".join(lines)


def _label(rate: str) -> str:
    return f"{rate.removeprefix('raw_').upper()}{', raw' if rate.startswith('raw_') else ''}"
