"""benchmarks/study_gpu.py at a small size: each step is a command, goes on, leaves a report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from made_scripts import script
from skipalign import plan
from skipalign.recipe import load
from skipalign.tiny import larger

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/study_gpu.py"


@pytest.fixture(scope="module")
def driver() -> Any:
    """The script as a room."""
    return script("benchmarks/study_gpu.py")


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    larger.make("shrunken", 0, folder, law=larger.SHRUNKEN)
    return folder


def test_the_steps_are_the_base_the_methods_and_the_report(driver: Any, tmp_path: Path):
    study = driver.steps("study-1k", [], size="60m", folder=larger.FOLDER)
    methods = list(load("study-1k").methods)
    assert [each.name for each in study] == ["base-0", *methods, "report"]
    assert not any(each.done for each in study)
    assert study[2].leaves[0] == Path("runs/study-1k/normal/seed-0/training.json")
    assert len(study[2].leaves) == 3  # the needle's and the perplexity's documents beside it
    # A base that is not made here has no step.
    larger_base = driver.steps("study-gpu", ["base.path=x/y"], size="60m", folder=larger.FOLDER)
    assert [each.name for each in larger_base] == [*load("study-gpu").methods, "report"]
    assert "base.path=x/y" in larger_base[0].command


@pytest.mark.parametrize("name", ["study-1k", "sweep-gpu"])
def test_recipe_and_small_recipe_pass_a_dry_run(driver: Any, stories: Path, name: str):
    data = [f"data.{place}.path={stories / file}" for place, file in enumerate(FILES)]
    found = plan.examine(load(name, data).trainings())
    notes = [note for note in found["notes"] if not note.startswith("trainer.bf16")]
    assert notes == ["base runs/stories/base-60m-0, which is not on this machine"]
    assert len(found["trainings"]) == {"study-1k": 5, "sweep-gpu": 96}[name]
    per_step = {row["tokens_per_step"] for row in found["trainings"]} - {None}
    assert per_step == {32_768}
    small = plan.examine(load(name, driver.shrunken(load(name), stories)).trainings())
    assert small["notes"] == []
    assert {row["steps"] for row in small["trainings"]} <= {None, 2, 3}


def test_the_smallest_change_is_the_first_that_is_not_told_apart_from_the_best(driver: Any):
    right = {(1e-5, 50): 10, (2e-4, 50): 58, (1e-5, 2000): 50, (2e-4, 2000): 60}
    tried = [driver.Tried("full", *keys, correct, 60) for keys, correct in right.items()]
    lora = [driver.Tried("lora", *keys, 60 - correct, 60) for keys, correct in right.items()]
    found = driver.smallest([*tried, *lora])
    # 60 of 60 is at least 0.94: 58 are within it, 50 are not, though they came by a larger change.
    assert (found["full"].learning_rate, found["full"].steps) == (2e-4, 50)
    assert (found["lora"].learning_rate, found["lora"].steps) == (1e-5, 50)


FILES = ("conversations.jsonl.gz", "prose.jsonl.gz")


@pytest.mark.long
def test_steps_run_one_by_one_and_leave_a_report(tmp_path: Path):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), "--shrink", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    first = run("--step", "base-0", "--minutes", "0")
    assert first.returncode == 3
    assert "the same command goes on" in first.stderr
    for step in ("base-0", "skipalign-bias"):
        done = run("--step", step)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/study-1k-shrunken"
    assert (folder / "report.html").exists()
    outcome = json.loads((folder / "skipalign-bias/seed-0/training.json").read_text())
    assert outcome["steps"] == 3
    assert outcome["key_bias"]["name"] == "gap"
    assert (folder / "skipalign-bias/seed-0/evaluation/needle/needle.json").exists()
    lines = run("--list").stdout.splitlines()
    states = {line.split()[1]: line.split()[0] for line in lines}
    assert states["base-0"] == states["skipalign-bias"] == "done"
    assert states["normal"] == "left"


@pytest.mark.long
def test_a_sweep_runs_in_steps(tmp_path: Path):
    words = ["--shrink", "--recipe", "sweep-gpu"]
    for step in ("base-0", "bias-lora-learning-rate-0.0001-max-steps-2"):
        command = [sys.executable, str(SCRIPT), *words, "--step", step]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    command = [sys.executable, str(SCRIPT), *words, "--smallest"]
    told = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert told.startswith("bias-lora        learning rate 0.0001, 2 steps: ")
    (left,) = (tmp_path / "runs/sweep-gpu-shrunken").glob("*/seed-0/model/adapter_config.json")
    assert left.parts[-4] == step
