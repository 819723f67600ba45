"""Known answers for the reader of CTranslate2's `model.bin`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from simulations.models.ctranslate2_reader import Array, read_variables
from zo_common.errors import ModelNotFound, UnsupportedModel

TYPE_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "uint16": 5}

VARIABLES: dict[str, Array] = {
    "encoder/num_heads": np.array(6, np.int16),
    "encoder/flag": np.array(-1, np.int8),
    "decoder/weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "decoder/bias": np.array([0.5, -65504.0, 2.0**-24], np.float16),
    "decoder/empty": np.zeros((0, 4), np.float32),
    "decoder/steps": np.array([-(2**31), 2**31 - 1], np.int32),
}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def model_bytes(variables: Mapping[str, Array], aliases: Mapping[str, str], version: int = 6) -> bytes:
    """A `model.bin`, written from the description of the format rather than with the reader's own tables."""
    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        parts += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        parts += [struct.pack("<BI", TYPE_IDS[array.dtype.name], array.nbytes), array.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(alias) + text(name) for alias, name in aliases.items()]
    return b"".join(parts)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        read_variables(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and message.endswith("again.")
    return message


def test_reads_a_file_given_byte_by_byte(tmp_path: Path) -> None:
    content = bytes.fromhex(
        "06000000" "0200" "5300" "03000000" "01000000"  # version 6, spec "S", revision 3, one variable
        "0200" "7700" "02" "0100000002000000" "04" "04000000" "003c00c0"  # "w": float16 [[1, -2]]
        "01000000" "0200" "6100" "0200" "7700"  # one alias, "a" for "w"
    )  # fmt: skip
    model = read_variables(written(tmp_path, content))
    assert (model.spec_name, model.revision, dict(model.aliases)) == ("S", 3, {"a": "w"})
    assert model["w"].dtype == np.float16
    assert model["w"].tolist() == [[1.0, -2.0]]
    assert model["a"] is model["w"]


@pytest.mark.parametrize("version", [4, 5, 6])
def test_reads_every_type_and_shape(tmp_path: Path, version: int) -> None:
    model = read_variables(written(tmp_path, model_bytes(VARIABLES, {"decoder/tied": "decoder/weight"}, version)))
    assert model.spec_name == "WhisperSpec" and model.revision == 3
    assert list(model.variables) == list(VARIABLES)
    for name, array in VARIABLES.items():
        assert model[name].dtype == array.dtype and model[name].shape == array.shape
        assert model[name].tobytes() == array.tobytes()
    assert "decoder/tied" in model and "decoder/other" not in model
    np.testing.assert_array_equal(model["decoder/tied"], VARIABLES["decoder/weight"])
    with pytest.raises(UnsupportedModel, match="has no variable 'decoder/other'"):
        model["decoder/other"]


def test_widens_bfloat16_exactly(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000, 0x0001, 0x7F80], np.uint16)
    array = read_variables(written(tmp_path, model_bytes({"w": bits}, {})))["w"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.0, -2.0, 2.0**-133, float("inf")]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = model_bytes(VARIABLES, {"decoder/tied": "decoder/weight"})
    for length in range(len(content)):
        assert "it ends inside" in refusal(written(tmp_path, content[:length]))
    assert "1 bytes follow its end" in refusal(written(tmp_path, content + b"\0"))


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_a_file_in_parts_of_any_size_is_read_as_one(tmp_path: Path, size: int) -> None:
    content = model_bytes(VARIABLES, {"decoder/tied": "decoder/weight"})
    parts = [tmp_path / f"part{n}" for n in range(-(-len(content) // size))]
    for number, part in enumerate(parts):
        part.write_bytes(content[number * size : (number + 1) * size])

    model = read_variables(parts)

    assert {name: model[name].tobytes() for name in VARIABLES} == {n: a.tobytes() for n, a in VARIABLES.items()}
    with pytest.raises(UnsupportedModel, match=r"part0 \+ .* it ends inside"):
        read_variables(parts[:-1])
    with pytest.raises(ModelNotFound, match="part999"):
        read_variables([*parts, tmp_path / "part999"])


@pytest.mark.parametrize("version", [0, 3, 7])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    assert f"version {version}" in refusal(written(tmp_path, model_bytes(VARIABLES, {}, version)))


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(100), b"{}" * 50, b"\x80\x02}q\x00." * 9, bytes(64)])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    assert "its first four bytes say version" in refusal(written(tmp_path, content))


def test_inconsistent_entries_are_refused(tmp_path: Path) -> None:
    head = struct.pack("<I", 6) + text("S") + struct.pack("<II", 3, 1) + text("w")
    two_floats = head + struct.pack("<BI", 1, 2)
    assert "unknown type 9" in refusal(written(tmp_path, two_floats + struct.pack("<BI", 9, 8) + bytes(8)))
    assert "announces 12 bytes" in refusal(written(tmp_path, two_floats + struct.pack("<BI", 0, 12) + bytes(12)))
    huge = head + struct.pack("<BI", 1, 2**30 - 1) + struct.pack("<BI", 0, 2**32 - 4)
    assert "0 left" in refusal(written(tmp_path, huge))
    assert "stands for 'x'" in refusal(written(tmp_path, model_bytes({}, {"a": "x"})))
    assert "NUL" in refusal(written(tmp_path, struct.pack("<IH", 6, 2) + b"SS" + bytes(20)))
    assert "UTF-8" in refusal(written(tmp_path, struct.pack("<IH", 6, 2) + b"\xff\0" + bytes(20)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"absent\.bin"):
        read_variables(tmp_path / "absent.bin")
    with pytest.raises(ModelNotFound, match=r"model\.bin"):
        read_variables(tmp_path)
