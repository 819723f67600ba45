"""The table says what was reached, what was missed, and what was not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.harness.rows import row
from benchmarks.pages.table import FILES, TARGETS, lines, markdown, sources

CPU = {"hardware": {"cpu": "Some CPU", "cores": 4}, "threads": 2, "command": "python -m x", "revision": "abc1234"}


def _write(directory: Path, name: str, content: dict[str, Any]) -> None:
    (directory / f"{name}.json").write_text(json.dumps(CPU | content))


def _quotient(value: float) -> dict[str, Any]:
    return {"ratio": value + 1, "median": value, "min": value - 0.5, "max": value + 0.5, "repeats": 3}


def test_without_any_result_every_script_is_not_measured(tmp_path: Path) -> None:
    found = lines(tmp_path)
    assert [line.measured for line in found] == ["not measured"] * sum(title is not None for title in FILES.values())
    assert any("GPU" in line.row for line in found) and not any(line.met or line.device for line in found)


def test_targets_are_met_or_missed(tmp_path: Path) -> None:
    rows = [
        row("fast", _quotient(1.04), at_most=1.05),
        row("slow", _quotient(1.06), at_most=1.05),
        row("eager", _quotient(1.3), at_least=1.3),
        row("lazy", _quotient(1.29), at_least=1.3),
        row("beside", _quotient(7), against="theirs"),
    ]
    _write(tmp_path, "step", {"rows": rows})
    found = {line.row: line for line in lines(tmp_path)}
    assert [found[name].met for name in ("fast", "slow", "eager", "lazy", "beside")] == [
        "yes", "missed", "yes", "missed", ""
    ]  # fmt: skip
    assert found["fast"].measured == "1.040× (0.540× … 1.540×)"
    assert (found["fast"].target, found["lazy"].target, found["beside"].target) == ("≤ 1.050×", "≥ 1.300×", "theirs")
    assert found["fast"].device == "Some CPU, 2 cores"
    assert "ZO step ÷ its forwards" not in found and found["ZO step ÷ its forwards, GPU"].measured == "not measured"


def test_the_kernel_file_shows_its_numbers_under_their_targets(tmp_path: Path) -> None:
    kernel = {
        "one_pass_over_torch_add": {"median": 2.5, "min": 2.0, "max": 3.0, "repeats": 15},
        "fused_signs_per_second_per_core": {"mean": 9.9e9, "min": 1e9, "max": 3e9, "values": [1e9, 2.5e9, 3e9]},
    }
    _write(tmp_path, "kernel", kernel)
    found = {line.row: line for line in lines(tmp_path)}
    assert found["one pass over the weights ÷ torch add_"].met == "missed"
    signs = found["fused signs a core"]
    assert (signs.measured, signs.target, signs.met) == ("2.5 G/s (1 G/s … 3 G/s)", "≥ 2 G/s", "yes")
    assert "500 small tensors ÷ one of their size" not in found
    _write(tmp_path, "kernel", kernel | {"small_tensors_over_one": {"median": 1.2, "min": 1.1, "max": 1.3}})
    assert "500 small tensors ÷ one of their size" in {line.row for line in lines(tmp_path)}


def test_the_start_of_a_process_is_in_seconds(tmp_path: Path) -> None:
    _write(
        tmp_path, "kernel", {"second_process_start_seconds": {"limit": 1.0, "median": 0.268, "min": 0.2, "max": 0.3}}
    )
    found = next(line for line in lines(tmp_path) if line.row == TARGETS["second_process_start_seconds"]["row"])
    assert (found.measured, found.target, found.met) == ("0.268 s (0.2 s … 0.3 s)", "≤ 1 s", "yes")


def test_forward_passes_that_were_skipped_are_not_shown(tmp_path: Path) -> None:
    kept = {"median": 0.359, "min": 0.309, "max": 0.403}
    _write(tmp_path, "forward", {"cached_encoder_over_computed": kept, "compiled_over_eager": {"skipped": "no g++"}})
    found = [line for line in lines(tmp_path) if line.device]
    assert [(line.row, line.measured) for line in found] == [
        (TARGETS["cached_encoder_over_computed"]["row"], "0.359× (0.309× … 0.403×)")
    ]


def test_a_thousand_devices_in_seconds_and_gibibytes(tmp_path: Path) -> None:
    seconds = {"median": 22.85, "min": 20.07, "max": 26.58, "values": [20.07, 22.85, 26.58]}
    content = {"devices": 1000, "asked_a_round": 40, "rounds": 12, "seconds_a_round": seconds, "peak_memory_mib": 3444}
    _write(tmp_path, "thousand", content)
    a_round, memory = (line for line in lines(tmp_path) if line.device)
    assert a_round.measured == "22.9 s (20.1 s … 26.6 s)" and "40 asked" in a_round.row
    assert (memory.measured, memory.target, memory.met) == ("3.36 GiB", "≤ 24 GiB", "yes")


def test_a_label_says_what_it_is_of(tmp_path: Path) -> None:
    _write(tmp_path, "drift", {"rows": [row("weights changed", {"median": 0.96}, unit="%", of="one layer, 1.18 M")]})
    assert "weights changed (one layer, 1.18 M)" in {line.row for line in lines(tmp_path)}


def test_a_file_of_unknown_shape_shows_what_has_a_median(tmp_path: Path) -> None:
    content = {"rows": [{"tail": 3}], "bytes_up": {"median": 82, "unit": "B", "at_most": 100}, "seeds": [1, 2]}
    _write(tmp_path, "simulation", content)
    found = next(line for line in lines(tmp_path) if line.row == "bytes up")
    assert (found.measured, found.target, found.met) == ("82 B", "≤ 100 B", "yes")


def test_ratios_in_rows_are_shown(tmp_path: Path) -> None:
    _write(tmp_path, "simulation", {"rows": [{"devices": 10, "seconds_over_floor": 6.5, "ours": {"median": 3}}]})
    found = {line.row: line.measured for line in lines(tmp_path)}
    assert found["simulation, 10 devices: seconds ÷ floor"] == "6.50×"


def test_a_gpu_row_names_the_gpu(tmp_path: Path) -> None:
    _write(tmp_path, "large_v3_cuda", {"hardware": {"gpu": "Some GPU"}, "rows": [row("a", {"median": 1.0})]})
    assert [line.device for line in lines(tmp_path) if line.row == "a"] == ["Some GPU"]


def test_the_markdown_has_every_line_and_how_it_was_made(tmp_path: Path) -> None:
    _write(tmp_path, "step", {"rows": [row("a | b", _quotient(1.0), at_most=0.5)]})
    text = markdown(lines(tmp_path), sources(tmp_path))
    assert "| a \\| b | 1.000× (0.500× … 1.500×) | ≤ 0.500× | missed | Some CPU, 2 cores |" in text
    assert "- `step.json`: `python -m x`, revision abc1234" in text
