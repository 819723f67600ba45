"""The model card of a published adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zo_common.adapters.description import AdapterConfig
from zo_common.ledger.ledger import LedgerHeader
from zo_common.models.card import rates_table
from zo_common.models.hub import is_hub_id
from zo_common.models.whisper.languages import whisper_code
from zo_common.speech.comparison import change_text

CITATION = """\
```bibtex
@inproceedings{peng2025zoasr,
  title     = {{ZO-ASR}: Zeroth-Order Fine-Tuning of Speech Foundation Models without Back-Propagation},
  author    = {Peng, Yuezhang and Liu, Yuxin and Li, Yao and Wang, Sheng and Wen, Fei and Chen, Xie},
  booktitle = {IEEE Automatic Speech Recognition and Understanding Workshop (ASRU)},
  year      = {2025},
  note      = {arXiv:2512.01267}
}
```"""
_NO_PRIVACY = (
    "No differential privacy was asked for. Recordings stayed where they were, but scalars of training can tell of "
    "them, and this ledger holds the scalars' weighted means."
)


def adapter_card(
    config: AdapterConfig,
    header: LedgerHeader,
    result: Mapping[str, Any],
    repository: str,
    data: str,
    license: str,
    *,
    privacy: str,
) -> str:
    """Return the card as Markdown with the hub's metadata.

    Args:
        result: the published result.
        data: the training data: a data set's hub id, or a text; "" if unknown.
        privacy: the guarantee as text; "" for none.
    """
    from huggingface_hub import ModelCardData

    before, after = result.get("before"), result.get("after")
    rated = bool(before and after and "wer" in before and "wer" in after)
    metadata = ModelCardData(
        language=whisper_code(config.language) if config.language else None,
        license=license or None,
        base_model=config.base_model_name_or_path,
        base_model_relation="adapter",
        library_name="federated-zo-asr",
        pipeline_tag="automatic-speech-recognition",
        datasets=[data] if is_hub_id(data) and "/" in data else None,
        metrics=[(after or {}).get("headline", "wer")] if rated else None,
        tags=["zeroth-order", "federated", "adapter"],
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repository.rpartition('/')[2]}",
        f"An adapter of `{config.base_model_name_or_path}`: a ledger of {config.rounds} rounds of seeds and scalars, "
        f"from which {config.trained_weights} weights of the base are rebuilt to the bit.",
        _use(config, repository),
        f"## Data\n\n{data or 'The publisher does not say.'}",
        f"## Results\n\n{_results(result) if rated else 'None were measured.'}",
        f"## Privacy\n\n{f'The run kept {privacy}.' if privacy else _NO_PRIVACY}",
        _method(config, header, result),
        f"## Citation\n\n{CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def _use(config: AdapterConfig, repository: str) -> str:
    return (
        "## Use\n\n```python\nfrom zo_common import load_adapted\n\n"
        f'adapted = load_adapted("{config.base_model_name_or_path}", "{repository}")\n'
        "adapted.model, adapted.processor\n```\n\n"
        f"```\nzo-asr transcribe talk.wav --model {config.base_model_name_or_path} --ledger {repository}\n```"
    )


def _results(result: Mapping[str, Any]) -> str:
    before, after = result["before"], result["after"]
    text = rates_table(before, after, after.get("headline", "wer"))
    if found := result.get("comparison"):
        text += f"\n\n{found['metric'].upper()} {change_text(found)}, {found['method']}."
    return text


def _method(config: AdapterConfig, header: LedgerHeader, result: Mapping[str, Any]) -> str:
    settings = header.settings
    rows = {
        "base revision": config.revision or "not recorded",
        "base fingerprint": f"`{config.base_fingerprint}`",
        "checksum of the adapted weights": f"`{config.checksum}`" if config.checksum else "not recorded",
        "trained tensors": f"`{header.pattern}`, scale {header.scale}",
        "estimator": f"{header.estimator}, {settings.get('num-queries', '?')} directions a step",
        "rounds": str(config.rounds),
        "devices": str(result.get("devices", "not recorded")),
        "objective": str(settings.get("objective", "not recorded")),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    return f"## Method\n\nZeroth-order fine-tuning: forward passes alone, no gradients.\n\n{table}"
