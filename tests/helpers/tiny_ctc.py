"""Small stand-ins for CTC models: random Wav2Vec2, HuBERT and WavLM of both norm families, with characters to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zo_common.models.quiet import transformers_quiet

RATE = 16000
BLANK = 0
CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIKLMNOPRSTUW"]
KINDS = ("wav2vec2", "hubert", "wavlm")
NORMS = ("group", "layer")


def tiny_ctc(kind: str = "wav2vec2", norm: str = "group", seed: int = 0) -> Any:
    """A random model of two layers and width 16 with the frame geometry of the published ones, in eval mode."""
    from transformers import HubertConfig, HubertForCTC, Wav2Vec2Config, Wav2Vec2ForCTC, WavLMConfig, WavLMForCTC

    classes: dict[str, tuple[Any, Any]] = {
        "wav2vec2": (Wav2Vec2Config, Wav2Vec2ForCTC),
        "hubert": (HubertConfig, HubertForCTC),
        "wavlm": (WavLMConfig, WavLMForCTC),
    }
    config_class, model_class = classes[kind]
    config = config_class(
        vocab_size=len(CHARACTERS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        conv_bias=norm == "layer",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=BLANK,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():  # fresh weights say the same of every frame: make the model opinionated
            for name, parameter in model.named_parameters():
                scale = 0.7 if name.startswith("lm_head") else 0.1
                parameter.add_(scale * torch.randn_like(parameter))
            model.lm_head.bias[BLANK] += 2.5  # some frames of silence
            model.lm_head.bias[BLANK + 1 : CHARACTERS.index("|")] -= 100.0  # and no control characters
    return model.requires_grad_(False)


def write_tiny_ctc(target: Path, kind: str = "wav2vec2", norm: str = "group", seed: int = 0) -> Path:
    """A tiny model and its processor, as `save_pretrained` writes them."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    target.mkdir(parents=True, exist_ok=True)
    vocabulary = target / "vocab.json"
    vocabulary.write_text(json.dumps({c: i for i, c in enumerate(CHARACTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=norm == "layer")
    with transformers_quiet():
        tiny_ctc(kind, norm, seed).save_pretrained(target)
        Wav2Vec2Processor(extractor, tokenizer).save_pretrained(target)
    return target


def noise_waves(*samples: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Noise under a changing envelope, off centre, float32: of so many samples each."""
    rng = np.random.default_rng(seed)
    waves = []
    for count in samples:
        envelope = 0.1 + np.abs(np.sin(np.arange(count) / RATE * 9.0))
        waves.append((0.02 + 0.2 * envelope * rng.standard_normal(count)).astype(np.float32))
    return waves
