"""benchmarks/gpu.py at a small size on a CPU: the same steps, rows, refusals and results file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from made_scripts import script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The script as a room."""
    return script("benchmarks/gpu.py")


@pytest.fixture
def small(gpu: Any) -> Any:
    return gpu.Bench(device="cpu", shrink=True, rounds=2)


@pytest.mark.parametrize("model", ["1b", "7b"])
def test_a_cell_measures_three_ways_to_step(gpu: Any, small: Any, model: str):
    row = gpu.measure(gpu.Cell(model, 4096, "sdpa", checkpointing=model == "7b"), small)
    assert (row["rows"], row["tokens"]) == (2, 64)
    assert list(row["arms"]) == ["plain Trainer", "skips", "skips, key bias"]
    for found in row["arms"].values():
        assert found["rounds"] == 2
        assert found["mfu"] is None  # no GPU whose peak is known
        assert found["tokens_per_second"] == pytest.approx(
            2 * 64 / found["step_seconds"]["median"], rel=0.01
        )
        assert found["peak_bytes"] == pytest.approx(found["planned_bytes"], rel=0.05)
    assert row["arms"]["plain Trainer"]["to_plain"]["ratio"] == 1


def test_a_full_length_cell_steps_plainly(gpu: Any, small: Any):
    row = gpu.measure(gpu.Cell("1b", 16_384, "sdpa"), small)
    assert (row["rows"], row["tokens"], list(row["arms"])) == (1, 256, ["plain Trainer"])


def test_what_is_refused_is_listed_with_its_reason(gpu: Any, small: Any):
    row = gpu.measure(gpu.Cell("1b", 4096, "flex_attention"), small)
    assert len(row["arms"]) == 3
    for found in row["arms"].values():
        assert "no backward pass" in found["refused"]
    assert sum("no backward pass" in line for line in gpu.lines({"cells": {"x": row}})) == 3


def test_too_little_memory_is_a_row(gpu: Any):
    row = gpu.outcome(lambda: torch.empty(2**50))
    assert "memory" in row["did_not_fit"]
    assert gpu.is_done(row)
    with pytest.raises(RuntimeError, match="inconsistent"):
        gpu.outcome(lambda: torch.ones(2) @ torch.ones(3))


def test_every_cell_has_a_name_of_its_own(gpu: Any):
    names = [cell.name for cell in gpu.cells()]
    assert len(set(names)) == len(names) == 56
    assert names[0] == "1b 4096 sdpa"
    assert "7b 4096 flex_attention compile" in names


def test_results_of_another_machine_are_not_extended(gpu: Any, small: Any, tmp_path: Path):
    out = tmp_path / "gpu.json"
    kept = gpu.kept(out, small)
    assert kept["cells"] == {}
    assert kept["environment"]["commit"]
    gpu.write_json(out, kept)
    assert gpu.kept(out, small)["cells"] == {}
    with pytest.raises(SystemExit, match="shrunken is True"):
        gpu.kept(out, gpu.Bench())
    kept["environment"]["gpus"] = ["another"]
    gpu.write_json(out, kept)
    with pytest.raises(SystemExit, match="measured with gpus"):
        gpu.kept(out, small)


@pytest.mark.long
def test_a_measured_cell_is_not_repeated(tmp_path: Path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), "--device", "cpu"]
    command += ["--shrink", "--rounds", "1", "--only", "1b 16384 "]

    def run() -> tuple[dict[str, Any], str]:
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return json.loads(out.read_text())["cells"], done.stderr

    cells, said = run()
    assert "1 of 8: 1b 16384 sdpa" in said
    assert cells["1b 16384 sdpa"]["arms"]["plain Trainer"]["tokens_per_second"] > 0
    assert "not_run" in cells["1b 16384 flash_attention_2"]
    again, said = run()
    assert "1b 16384 sdpa\n" not in said
    assert "flash_attention_2" in said  # it may be installed by now
    assert again["1b 16384 sdpa"] == cells["1b 16384 sdpa"]
