"""Two processes train as one does; engines that are not those asked for are refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import TrainingArguments

from made_processes import VARIANTS, recorded, train
from skipalign import distribution
from skipalign.arguments import training_arguments
from skipalign.distribution import DDP, DEEPSPEED, FSDP, FSDP1, ONE
from skipalign.errors import RecipeError, RunError
from skipalign.files import read_json, read_json_lines
from skipalign.training import _require_as_many
from test_training import data_folder, make_base, make_data

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "recipes/accelerate"
RECIPE = """
base: base
data: [{path: chats.jsonl, name: chats}]
rope: {type: ntk, factor: 8}
strategy: {name: skipalign, max_position: 512, skip_fraction: 1.0}
trainer: {max_steps: 3, per_device_train_batch_size: 4, logging_steps: 1, use_cpu: true}
"""


def arguments(out: Path, **given: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(out), use_cpu=True, report_to="none", **given)


def launched(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    module, *rest = words
    flag = "--main_process_port" if module == "accelerate.commands.launch" else "--master_port"
    command = [sys.executable, "-m", str(module), flag, port, *map(str, rest)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("one-gpu", "NO"),
        ("ddp", "MULTI_GPU"),
        ("fsdp2", "FSDP"),
        ("zero2", "DEEPSPEED"),
        ("zero3", "DEEPSPEED"),
    ],
)
def test_shipped_configs_load_with_accelerate(name: str, kind: str):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert str(config.distributed_type).endswith(kind)
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


def test_every_shipped_config_is_tested():
    assert {path.stem for path in CONFIGS.iterdir()} == {
        "one-gpu",
        "ddp",
        "fsdp2",
        "zero2",
        "zero3",
    }


def test_the_engine_asked_for_is_read_from_launcher_and_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain = arguments(tmp_path)
    assert distribution.asked(plain) == ONE
    plain.fsdp, plain.fsdp_config = True, {"version": 2}
    assert distribution.asked(plain) == FSDP
    plain.fsdp = False
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distribution.asked(plain) == DDP
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert distribution.asked(plain) == FSDP1
    with pytest.raises(RecipeError, match="fsdp_version: 2"):
        distribution.refuse_engine(plain)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert distribution.asked(plain) == FSDP
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert distribution.asked(plain) == DEEPSPEED
    with pytest.raises(
        RunError, match="DeepSpeed is asked for and one process is in force, on cpu"
    ):
        distribution.require_engine(plain, torch.nn.Linear(1, 1))
    with pytest.raises(RunError, match="in shards; delete checkpoint-3"):
        distribution.require_whole(plain, Path("checkpoint-3"))


def test_the_shipped_config_and_a_recipe_may_both_ask_for_checkpointing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """transformers takes it from one of the two only; FSDP's own gathers weights once less."""
    trainer = {"activation_checkpointing": True, "use_cpu": True}

    def asked_of_the_trainer() -> bool:
        return training_arguments(trainer, output_dir=tmp_path, seed=0).activation_checkpointing

    assert asked_of_the_trainer()
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", str(config["fsdp_version"]))
    assert asked_of_the_trainer()
    name = "FSDP_ACTIVATION_CHECKPOINTING"  # as accelerate launch hands it on
    monkeypatch.setenv(name, str(config[name.lower()]).lower())
    assert not asked_of_the_trainer()


def test_engines_that_cut_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    args = arguments(tmp_path)
    distribution.refuse_engine(args)
    for field, reason in (("CP", "cuts rows"), ("SP", "document border"), ("TP", "counts it")):
        with monkeypatch.context() as patch:
            patch.setenv(f"PARALLELISM_CONFIG_{field}_SIZE", "2")
            with pytest.raises(RecipeError, match=f"{field.lower()}_size is 2: .*{reason}"):
                distribution.refuse_engine(args)
    args._n_gpu = 2
    with pytest.raises(RecipeError, match=r"2 GPUs are visible .*nn\.DataParallel"):
        distribution.refuse_engine(args)
    assert distribution.in_force(torch.nn.DataParallel(torch.nn.Linear(1, 1))) == "nn.DataParallel"


def test_one_process_is_its_own_first():
    assert distribution.on_first(lambda: 3) == 3
    assert distribution.is_first()
    assert distribution.summed([1, 2.5]) == [1, 2.5]
    assert distribution.largest(4) == 4
    _require_as_many(1, Path("checkpoint-2"))
    with pytest.raises(RunError, match="of 2 process"):
        _require_as_many(2, Path("checkpoint-2"))


# ------------------------------------------------------------------------------- through train()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            RunError,
            "FSDP2 is asked for and one process is in force",
        ),
        ({"PARALLELISM_CONFIG_SP_SIZE": "2"}, RecipeError, "takes every skip for a document"),
    ],
)
def test_a_training_asks_which_engine_is_in_force_before_its_first_step(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    error: type[Exception],
    message: str,
):
    data = make_data(tmp_path, base, 8)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        train(base, data, tmp_path / "run", "plain", accumulation=1)
    assert not (tmp_path / "run/plain/loss.jsonl").exists()


# ------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train by two processes and by one; return both folders."""
    folder = tmp_path_factory.mktemp("two")
    data = make_data(folder, base, 64, answers_differ=True)
    one, both = folder / "one", folder / "both"
    one.mkdir()
    both.mkdir()
    for name in VARIANTS:
        with recorded(one / f"{name}.json"):
            train(base, data, one, name, accumulation=2)
    script = Path(__file__).with_name("made_processes.py")
    words = ("torch.distributed.run", "--nproc_per_node", "2", script, base, data_folder(data))
    done = launched(*words, both, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return one, both


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_as_one(two: tuple[Path, Path], name: str):
    one, both = two
    lines = [read_json_lines(folder / name / "loss.jsonl") for folder in two]
    for of_one, of_two in zip(*lines, strict=True):
        for key in of_one.keys() - {"seconds"}:
            assert of_two[key] == pytest.approx(of_one[key], rel=1e-5), (of_one["step"], key)
    weights = [load_file(folder / name / "model/model.safetensors") for folder in two]
    for key, value in weights[0].items():
        assert torch.allclose(weights[1][key], value, atol=2e-5), key
    assert read_json(one / name / "outcome.json") == read_json(both / name / "outcome.json")
    files = [
        {path.relative_to(folder) for path in (folder / name).rglob("*") if path.is_file()}
        for folder in two
    ]
    extra = {path.name for path in files[1] ^ files[0]}
    assert extra == {"rng_state.pth", "rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_positions_of_a_sample_are_the_same_on_two_processes(two: tuple[Path, Path], name: str):
    one, both = two
    of_one = json.loads((one / f"{name}.json").read_text())
    first, second = (json.loads((both / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    assert not first.keys() & second.keys()
    together = first | second
    # A data loader draws a batch ahead of what is trained.
    common = of_one.keys() & together.keys()
    assert len(common) >= read_json(one / name / "outcome.json")["num_sequences"]
    assert {key: of_one[key] for key in common} == {key: together[key] for key in common}


@pytest.mark.long
def test_two_processes_resume_to_the_bit(two: tuple[Path, Path]):
    _, both = two
    weights = [
        load_file(folder / "plain/model/model.safetensors") for folder in (both, both / "resumed")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    lines = [read_json_lines(f / "plain/loss.jsonl") for f in (both, both / "resumed")]
    assert [line["step"] for line in lines[1]] == list(range(1, 13))
    outcomes = [read_json(f / "plain/outcome.json") for f in (both, both / "resumed")]
    assert outcomes[0] == outcomes[1]


@pytest.mark.long
def test_work_of_the_first_process_is_told_and_its_failure_ends_all(two: tuple[Path, Path]):
    found = [json.loads((two[1] / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["told"] for each in found] == [{"rank": 0}, {"rank": 0}]
    assert [each["failure"] for each in found] == ["RunError: no data", "SystemExit: 1"]


@pytest.mark.long
def test_fsdp_asked_for_on_a_cpu_stops(two: tuple[Path, Path]):
    found = [json.loads((two[1] / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for each in found:
        assert "FSDP2 is asked for and DDP is in force, on cpu with 2 process" in each["refusal"]
        assert "recipes/accelerate/ddp.yaml instead" in each["refusal"]
    assert not (two[1] / "refused/plain/loss.jsonl").exists()


@pytest.mark.long
def test_a_sharded_model_has_the_losses_of_the_whole_one(two: tuple[Path, Path], base: Path):
    found = [json.loads((two[1] / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for each in found:
        assert each["engine"] == FSDP
        assert each["losses"] == pytest.approx([each["expected"]] * 2, rel=1e-5)
        assert each["gradients_change"] < 1e-5 * each["largest_gradient"]
    assert found[0]["losses"] != found[1]["losses"]
    assert found[0]["tokens"] == found[1]["tokens"] > 0
    assert [each["nan_found"] for each in found] == [False, True]
    whole = load_file(base / "model.safetensors")
    saved = load_file(two[1] / "sharded/model.safetensors")
    assert whole.keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in whole.items())


@pytest.mark.long
def test_accelerate_launch_trains_and_one_process_writes(base: Path, tmp_path: Path):
    make_data(tmp_path, base, 24)
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "own.yaml").write_text(RECIPE)
    config = ("--config_file", CONFIGS / "ddp.yaml", "-m", "skipalign")
    done = launched("accelerate.commands.launch", *config, "train", "own.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("made runs/own/model; next:") == 1
    run = tmp_path / "runs/own"
    assert [line["step"] for line in read_json_lines(run / "loss.jsonl")] == [1, 2, 3]
    assert read_json(run / "environment.json")["num_processes"] == 2
    assert read_json(run / "training.json")["num_sequences"] == 3 * 2 * 4
    assert {"settings.json", "coverage.json", "probe.json"} <= {p.name for p in run.iterdir()}
