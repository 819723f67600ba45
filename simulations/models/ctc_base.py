"""A small CTC model: architecture, processor, initial weights, and its saved files.

A published Wav2Vec2 spends most of a forward pass in seven convolutions on raw samples. Here one wide convolution takes
25 ms every 10 ms and starts as a bank of mel-spaced filters in four phases (rectified, they give an envelope). Two
small ones then suffice for frames of 20 ms: a tenth of the work, and the filters need not be learned from scratch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zo_common.errors import ConfigError
from zo_common.models.quiet import transformers_quiet

CHARACTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'")
RATE = 16_000
MOST_BYTES = 8_000_000


@dataclass(frozen=True)
class Shape:
    """Sizes of the model: `width` of the transformer, `filters` of the convolutions (a multiple of the four phases)."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    inner: int = 768
    filters: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 64 or self.width % 64 or self.filters < 4 or self.filters % 4:
            raise ConfigError(f"width is {self.width}, filters {self.filters}: expected multiples of 64 and of 4")
        if self.layers < 1:
            raise ConfigError(f"layers is {self.layers}, expected at least 1")


def model_processor(folder: Path) -> Any:
    """Return feature extractor and character tokenizer; writes the vocabulary to `folder`."""
    import transformers

    types: Any = transformers  # whose constructors have no annotations
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({c: i for i, c in enumerate(CHARACTERS)}))
    extractor = types.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return types.Wav2Vec2Processor(extractor, types.Wav2Vec2CTCTokenizer(str(vocabulary)))


def base_model(shape: Shape, processor: Any, seed: int) -> Any:
    """Return the untrained model, deterministic for a seed; frames of 20 ms, layer norms, attention masks."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=len(CHARACTERS),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        conv_dim=(shape.filters, shape.width, shape.width),
        conv_kernel=(400, 3, 3),
        conv_stride=(160, 2, 1),
        conv_bias=True,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        mask_time_prob=0.0,
        layerdrop=0.0,
        attention_dropout=shape.dropout,
        hidden_dropout=shape.dropout,
        activation_dropout=shape.dropout,
        feat_proj_dropout=0.0,
        final_dropout=shape.dropout,
        pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Wav2Vec2ForCTC(config)
    first = model.wav2vec2.feature_extractor.conv_layers[0].conv
    with torch.no_grad():
        first.weight.copy_(mel_filters(shape.filters, 400)[:, None])
        first.bias.zero_()
    return model


def mel_filters(count: int, samples: int) -> torch.Tensor:
    """Windowed sinusoids float32 (count, samples) of unit energy: mel-spaced from 80 to 7600 Hz, in four phases each.

    Windows get shorter with the frequency, as bands get wider.
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (80.0, 7600.0))
    mels = torch.linspace(low, high, count // 4, dtype=torch.float64)
    frequencies = 700 * (10 ** (mels / 2595) - 1)
    time = (torch.arange(samples, dtype=torch.float64) - (samples - 1) / 2) / RATE
    widths = (1.0 / (0.1 * frequencies + 60)).clamp(max=samples / RATE / 4)  # standard deviation in seconds
    window = torch.exp(-0.5 * (time / widths[:, None]) ** 2)
    waves = [window * torch.cos(2 * math.pi * frequencies[:, None] * time + phase * math.pi / 2) for phase in range(4)]
    bank = torch.stack(waves, dim=1).reshape(count, samples)
    return torch.nn.functional.normalize(bank, dim=1).float()


def save_small(model: Any, processor: Any, output: Path) -> None:
    """Save in float16, with the processor.

    Raises:
        ConfigError: the file would be too large to ship.
    """
    from transformers import Wav2Vec2ForCTC

    size = 2 * sum(p.numel() for p in model.parameters())
    if size > MOST_BYTES:
        raise ConfigError(f"the model has {size} bytes in float16, expected at most {MOST_BYTES}: make it smaller")
    copy: Any = Wav2Vec2ForCTC(model.config)
    copy.load_state_dict(model.state_dict())
    with transformers_quiet():
        copy.half().save_pretrained(output)
        processor.save_pretrained(output)


def model_card(
    *,
    command: str,
    recipe: dict[str, Any],
    shape: dict[str, Any],
    parameters: int,
    minutes: float,
    hours: float,
    test: tuple[float, float, int, tuple[str, ...]],
    curve: list[dict[str, Any]],
) -> str:
    """Return the README of a trained model: description, training, error rates, limits."""
    wer, cer, utterances, speakers = test
    rows = "\n".join(f"| {r['step']} | {r['loss']:.3f} | {r['dev_wer']:.1%} | {r['seconds'] / 60:.1f} |" for r in curve)
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: automatic-speech-recognition
---
# A small Wav2Vec2 with a CTC head for synthetic US English

{parameters / 1e6:.2f} million parameters, stored as float16. It hears the voices of the espeak-ng synthesiser, in
sentences of a small grammar (household, travel, appointments), and is there to try adaptation methods offline. It does
not recognise people.

- **Word error rate {wer:.1%}** (characters {cer:.1%}) on {utterances} utterances of {len(speakers)} voices that it
  never heard ({", ".join(speakers)}) with sentences that it never read, without a language model.
- Made from nothing: no recording of a person, no other model. {hours:.1f} h of speech of {recipe["speakers"]} voices,
  US accent, with varying rate and pitch, each stretched and filtered at random at each use.
- Trained by back-propagation (AdamW, CTC) in {minutes:.0f} minutes.
- Frames of 20 ms; the first convolution starts as mel-spaced filters; layer norms, so padding needs attention masks.

Made with

    {command}

Recipe: {", ".join(f"{k} {v}" for k, v in recipe.items())}; shape: {", ".join(f"{k} {v}" for k, v in shape.items())}.

| step | loss, nats a character | dev WER | minutes |
|---|---|---|---|
{rows}
"""
