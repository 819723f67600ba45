"""Small stand-ins for every class of speech models: random weights, and processors that write a few letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghiklmnoprstuw'"
WAVE_CTC = (
    "wav2vec2",
    "hubert",
    "wavlm",
    "data2vec-audio",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "wav2vec2-conformer",
)
MEL_CTC = ("wav2vec2-bert", "parakeet_ctc", "lasr_ctc")
CTC = (*WAVE_CTC, *MEL_CTC, "omniasr_ctc")
_BLANK = 0


def write_ctc(kind: str, target: Path, seed: int = 0) -> Path:
    """A tiny model of a CTC class with its processor, as `save_pretrained` writes them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    target.mkdir(parents=True, exist_ok=True)
    processor = ctc_processor(kind, target)
    model = tiny_model(kind, len(processor.tokenizer), processor.tokenizer.pad_token_id, seed)
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return target


def tiny_model(kind: str, classes: int, blank: int, seed: int = 0) -> Any:
    """A random model with a CTC head, in eval mode."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING

    config = AutoConfig.for_model(kind, **_settings(kind, classes, blank))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = MODEL_FOR_CTC_MAPPING[type(config)](config).eval()
        with torch.no_grad():  # fresh weights say the same of every frame
            for name, parameter in model.named_parameters():
                parameter.add_((0.5 if "_head" in name else 0.05) * torch.randn_like(parameter))
    return model.requires_grad_(False)


def _settings(kind: str, classes: int, blank: int) -> dict[str, Any]:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "omniasr_ctc":
        audio = {**small, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
        return {"vocab_size": classes, "blank_token_id": blank, "pad_token_id": blank, "audio_config": audio}
    if kind in ("parakeet_ctc", "lasr_ctc", "granite_speech5_ctc"):
        encoder = {
            **small,
            "num_mel_bins": 128 if kind == "lasr_ctc" else 80,
            "num_key_value_heads": 2,
            "subsampling_conv_channels": 8,
        }
        if kind == "granite_speech5_ctc":
            encoder |= {"output_dim": classes, "vocab_size": classes, "context_size": 20, "num_hidden_layers": 4}
            encoder |= {"subsample_layers": [1]}
        return {"vocab_size": classes, "pad_token_id": blank, "encoder_config": encoder}
    others = {
        "vocab_size": classes,
        "pad_token_id": blank,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "conv_pos_kernel_size": 9,
    }
    if kind == "wav2vec2-bert":
        return {**small, **others, "feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 3}
    convolutions = {"conv_dim": [8] * 7, "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_kernel": [10, 3, 3, 3, 3, 2, 2]}
    return {**small, **others, **convolutions, "squeeze_factor": 2, "conv_depthwise_kernel_size": 3}


def ctc_processor(kind: str, folder: Path) -> Any:
    """The processor of a CTC class; `folder` takes the vocabulary's file."""
    import transformers as hf

    if kind in WAVE_CTC:
        extractor: Any = hf.Wav2Vec2FeatureExtractor(return_attention_mask=kind == "data2vec-audio")
        return hf.Wav2Vec2Processor(extractor, character_tokenizer(folder))
    if kind == "wav2vec2-bert":
        return hf.Wav2Vec2BertProcessor(hf.SeamlessM4TFeatureExtractor(), character_tokenizer(folder))
    if kind == "lasr_ctc":
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
        tokenizer: Any = hf.LasrTokenizer(vocab=[*pieces, ("an", -2.0)], extra_ids=0)
        return hf.LasrProcessor(hf.LasrFeatureExtractor(), tokenizer)
    if kind == "omniasr_ctc":
        return hf.OmniASRCTCProcessor(hf.OmniASRFeatureExtractor(), piece_tokenizer(hf.ParakeetTokenizer))
    return hf.ParakeetProcessor(hf.ParakeetFeatureExtractor(), piece_tokenizer(hf.ParakeetTokenizer))


def character_tokenizer(folder: Path) -> Any:
    """Wav2Vec2's, of lower case letters."""
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary = folder / "vocab.json"
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    return Wav2Vec2CTCTokenizer(str(vocabulary))


def piece_tokenizer(kind: Any, **special: str) -> Any:
    """One of word pieces, two letters of which are one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "<unk>", "<s>", "</s>", *special.values(), "▁", *LETTERS, "an"]
    pieces = models.BPE({t: i for i, t in enumerate(tokens)}, [("a", "n")], unk_token="<unk>")
    tokenizer = Tokenizer(pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return kind(tokenizer_object=tokenizer, **names, **special)
