"""Small stand-ins for every class of speech models: random weights, and processors that write a few letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from zo_common.models.quiet import transformers_quiet

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
TORCHAUDIO_CTC = "granite_speech5_ctc"  # whose features need that package
_BLANK = 0


def write_ctc(kind: str, target: Path, seed: int = 0) -> Path:
    """A tiny model of a CTC class with its processor, as `save_pretrained` writes them."""
    target.mkdir(parents=True, exist_ok=True)
    processor = ctc_processor(kind, target)
    model = tiny_model(kind, len(processor.tokenizer), processor.tokenizer.pad_token_id, seed)
    with transformers_quiet():
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
    if kind in ("parakeet_ctc", "lasr_ctc", TORCHAUDIO_CTC):
        encoder = {
            **small,
            "num_mel_bins": 128 if kind == "lasr_ctc" else 80,
            "num_key_value_heads": 2,
            "subsampling_conv_channels": 8,
        }
        if kind == TORCHAUDIO_CTC:
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
    if kind == TORCHAUDIO_CTC:
        return hf.GraniteSpeech5Processor(hf.GraniteSpeech5FeatureExtractor(), piece_tokenizer(hf.ParakeetTokenizer))
    return hf.ParakeetProcessor(hf.ParakeetFeatureExtractor(), piece_tokenizer(hf.ParakeetTokenizer))


def character_tokenizer(folder: Path) -> Any:
    """Wav2Vec2's, of lower case letters."""
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary = folder / "vocab.json"
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    return Wav2Vec2CTCTokenizer(str(vocabulary))


def piece_tokenizer(kind: Any, extra_special_tokens: dict[str, str] | None = None) -> Any:
    """One of word pieces, two letters of which are one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<pad>", "<unk>", "<s>", "</s>", *(extra_special_tokens or {}).values(), "▁", *LETTERS, "an"]
    pieces = models.BPE({t: i for i, t in enumerate(tokens)}, [("a", "n")], unk_token="<unk>")
    tokenizer = Tokenizer(pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return kind(tokenizer_object=tokenizer, **names, extra_special_tokens=extra_special_tokens or {})


def write_mms(target: Path) -> Path:
    """A Wav2Vec2 with a head and small layers for English and French; of Swedish there is only the vocabulary."""
    from safetensors.torch import save_file
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    from zo_common.models.ctc.language import adapter_tensors

    target.mkdir(parents=True, exist_ok=True)
    letters = {"eng": LETTERS, "fra": f"{LETTERS}é", "swe": f"{LETTERS}å"}
    tokens = {code: ["<pad>", "<s>", "</s>", "<unk>", "|", *known] for code, known in letters.items()}
    nested = {code: {token: index for index, token in enumerate(known)} for code, known in tokens.items()}
    (target / "vocab.json").write_text(json.dumps(nested))
    tokenizer = Wav2Vec2CTCTokenizer(str(target / "vocab.json"), target_lang="eng")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(target)
    with torch.random.fork_rng():
        for seed, code in enumerate(("fra", "eng")):
            torch.manual_seed(seed)
            own = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "adapter_attn_dim": 4}
            model = Wav2Vec2ForCTC(Wav2Vec2Config(**_settings("wav2vec2", len(tokens[code]), 0), **own))
            adapter = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
            save_file(adapter, target / f"adapter.{code}.safetensors")
    with transformers_quiet():
        model.save_pretrained(target)
    return target


TOKENS = (
    "moonshine",
    "moonshine_streaming",
    "speech_to_text",
    "speech-encoder-decoder",
    "canary",
    "qwen3_asr",
    "omniasr",
)
_START, _END = 2, 3  # of `piece_tokenizer`
_AUDIO = {"audio_token": "<|audio|>", "audio_bos_token": "<|audio_on|>", "audio_eos_token": "<|audio_off|>"}
_ASK_OMNI = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'audio' %}<|audio|>{% elif c.type == 'language' %}"
    "<|lang:{{ c.language }}|>{% endif %}{% endfor %}{% endfor %}<s>"
)
_ASK = (
    "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}{% if c.type == 'audio' %}"
    "<|audio_on|><|audio|><|audio_off|>{% endif %}{% endfor %}{% elif m.role == 'assistant' %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}"
)
_BEGIN = "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}<s>{{ c.source_language }}{% endif %}"
_BEGIN += "{% endfor %}{% endfor %}"


def write_tokens(kind: str, target: Path, seed: int = 0) -> Path:
    """A tiny model of a class that writes tokens with its processor, as `save_pretrained` writes them."""
    target.mkdir(parents=True, exist_ok=True)
    processor = token_processor(kind, target)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _token_model(kind, len(processor.tokenizer), processor).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    ends = {"pad_token_id": 0, "bos_token_id": _START, "eos_token_id": _END}
    if kind not in ("qwen3_asr", "omniasr"):
        ends["decoder_start_token_id"] = _START
    for name, token in ends.items():
        setattr(model.generation_config, name, token)
    with transformers_quiet():
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return target


def _token_model(kind: str, size: int, processor: Any) -> Any:
    import transformers as hf

    ends = {"pad_token_id": 0, "bos_token_id": _START, "eos_token_id": _END}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    begin = {"decoder_start_token_id": _START, **ends}
    if kind == "moonshine":
        layers = {f"{s}_{n}": 2 for s in ("encoder", "decoder") for n in ("num_hidden_layers", "num_attention_heads")}
        return hf.MoonshineForConditionalGeneration(
            hf.MoonshineConfig(vocab_size=size, hidden_size=16, intermediate_size=32, **layers, **begin)
        )
    if kind == "moonshine_streaming":
        own = {**small, "num_key_value_heads": 2}
        encoder = {**own, "sliding_windows": [[16, 4]] * 2, "head_dim": 8}
        return hf.MoonshineStreamingForConditionalGeneration(
            hf.MoonshineStreamingConfig(
                encoder_config=encoder, vocab_size=size, head_dim=8, num_key_value_heads=2, **small, **begin
            )
        )
    if kind == "speech_to_text":
        config: Any = hf.Speech2TextConfig(
            vocab_size=size,
            d_model=16,
            encoder_layers=4,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            conv_channels=16,
            max_target_positions=64,
            **begin,
        )
        return hf.Speech2TextForConditionalGeneration(config)
    if kind == "speech-encoder-decoder":
        encoder = hf.AutoConfig.for_model("wav2vec2", **_settings("wav2vec2", 10, 0), feat_extract_norm="layer")
        decoder = hf.BertConfig(vocab_size=size, **small, max_position_embeddings=64, pad_token_id=0)
        config = hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **begin)
        return hf.SpeechEncoderDecoderModel(config)
    if kind == "canary":
        encoder_settings = {**small, "num_mel_bins": 128, "subsampling_conv_channels": 8}
        decoder_settings = {**small, **ends, "vocab_size": size, "num_key_value_heads": 2, "head_dim": 8}
        config = hf.CanaryConfig(
            encoder_config=encoder_settings, decoder_config=decoder_settings, vocab_size=size, **begin
        )
        return hf.CanaryForConditionalGeneration(config)
    text = {"model_type": "llama", **small, **ends, "vocab_size": size, "num_key_value_heads": 2}
    token = processor.tokenizer.convert_tokens_to_ids(_AUDIO["audio_token"])
    if kind == "omniasr":
        audio: dict[str, Any] = _settings("omniasr_ctc", size, 0)["audio_config"]
        return hf.OmniASRForConditionalGeneration(
            hf.OmniASRConfig(audio_config=audio, text_config=text, audio_token_id=token, **ends)
        )
    audio = {"num_mel_bins": 128, "encoder_layers": 4, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    audio |= {"d_model": 16, "output_dim": 16, "downsample_hidden_size": 8}
    text |= {"model_type": "qwen3", "head_dim": 8}
    return hf.Qwen3ASRForConditionalGeneration(
        hf.Qwen3ASRConfig(audio_config=audio, text_config=text, audio_token_id=token, pad_token_id=0, eos_token_id=_END)
    )


def token_processor(kind: str, folder: Path) -> Any:
    """The processor of a class that writes tokens; `folder` takes files of its vocabulary."""
    import transformers as hf

    if kind == "speech_to_text":
        return hf.Speech2TextProcessor(hf.Speech2TextFeatureExtractor(), _sentence_pieces(folder))
    if kind == "canary":
        extractor: Any = hf.ParakeetFeatureExtractor(feature_size=128)
        return hf.CanaryProcessor(extractor, piece_tokenizer(hf.PreTrainedTokenizerFast), chat_template=_BEGIN)
    if kind == "qwen3_asr":
        tokenizer = piece_tokenizer(hf.PreTrainedTokenizerFast, extra_special_tokens=_AUDIO)
        return hf.Qwen3ASRProcessor(hf.Qwen3ASRFeatureExtractor(feature_size=128), tokenizer, chat_template=_ASK)
    if kind == "omniasr":
        special = {"audio_token": _AUDIO["audio_token"], "english": "<|lang:eng_latn|>"}
        tokenizer = piece_tokenizer(hf.PreTrainedTokenizerFast, extra_special_tokens=special)
        return hf.OmniASRProcessor(
            hf.OmniASRFeatureExtractor(), tokenizer, chat_template=_ASK_OMNI, audio_token=_AUDIO["audio_token"]
        )
    plain = kind.startswith("moonshine")
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=not plain, return_attention_mask=True)
    joined = hf.MoonshineStreamingProcessor if kind == "moonshine_streaming" else hf.Wav2Vec2Processor
    return joined(extractor, piece_tokenizer(hf.PreTrainedTokenizerFast))


def _sentence_pieces(folder: Path) -> Any:
    """Speech2Text's tokenizer of letters."""
    import sentencepiece
    from transformers import Speech2TextTokenizer

    text, model = folder / "letters.txt", folder / "sentencepiece.bpe"
    text.write_text("\n".join([" ".join(LETTERS)] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(model), model_type="char", vocab_size=len(LETTERS) + 4, minloglevel=2
    )
    text.unlink()
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "▁", *LETTERS]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    return Speech2TextTokenizer(str(vocabulary), f"{model}.model")
