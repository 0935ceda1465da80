"""A dry run: every training listed, what can be checked checked, no network asked for."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from skipalign import plan, tiny
from skipalign.errors import SkipalignError
from skipalign.recipe import load

RECIPE = """
base: tiny-{seed}
data: {path: chats.jsonl, max_tokens: 128}
strategy: {name: skipalign, max_position: 4096}
trainer: {max_steps: 20, per_device_train_batch_size: 4, gradient_accumulation_steps: 2}
seeds: [0, 1]
methods:
  base: {train: false}
  normal: {strategy: contiguous}
  packed: {strategy: contiguous, packing: {max_tokens: 1024}}
  skipalign: {trainer: {max_steps: -1}}
"""


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Work in an empty folder, with an empty cache; refuse the network and keep who asked it."""
    found: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        found.append(address)
        raise OSError("no network here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("SKIPALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    Path("chats.jsonl").write_text("no json\n" + json.dumps({"messages": turns}) + "\n")
    return found


def examined(*overrides: str) -> dict:
    Path("own.yaml").write_text(RECIPE)
    return plan.examine(load("own.yaml", overrides).trainings())


def test_every_training_is_listed_with_what_it_costs():
    rows = [tuple(row.values()) for row in examined()["trainings"]]
    assert rows == [
        ("base", 0, "tiny-0", 4096, None, None),
        ("base", 1, "tiny-1", 4096, None, None),
        ("normal", 0, "tiny-0", None, 20, 1024),
        ("normal", 1, "tiny-1", None, 20, 1024),
        ("packed", 0, "tiny-0", None, 20, 8192),
        ("packed", 1, "tiny-1", None, 20, 8192),
        ("skipalign", 0, "tiny-0", 4096, "3 epochs", 1024),
        ("skipalign", 1, "tiny-1", 4096, "3 epochs", 1024),
    ]


def test_it_says_what_is_made_on_first_use_and_makes_nothing(tmp_path: Path):
    found = examined("data.0.path=tiny-long")
    assert found["notes"] == [
        "data tiny-long, which is made when it is first used",
        "base tiny-1, which is made when it is first used, in about ten minutes",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "own.yaml"]
    shutil.copytree(tiny.BASE, tmp_path / "cache/tiny-1")
    assert examined()["notes"] == []


def test_what_is_not_on_this_machine_is_said_without_network(asked: list[object]):
    found = examined("base=someone/large-model", "data.0.path=someone/chats")
    assert found["notes"] == [
        "data someone/chats, which is not on this machine",
        "base someone/large-model, which is not on this machine",
    ]
    assert len(found["trainings"]) == 7
    assert asked == []


def test_a_base_in_the_hub_s_cache_is_looked_at(
    asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "hub/models--someone--model"
    shutil.copytree(tiny.BASE, folder / "snapshots/abc")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert examined("base=someone/model")["notes"] == []
    with pytest.raises(SkipalignError, match=r"factor is 0\.5"):
        examined("base=someone/model", "rope={type: ntk, factor: 0.5}")
    assert asked == []


def test_what_another_device_can_do_is_no_mistake():
    found = examined("trainer.bf16=true", "base=tiny")
    assert found["notes"] in ([], ["trainer.bf16, which this machine's devices cannot do"])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.0.path=nosuch.jsonl", "nosuch.jsonl: no such file"),
        ("data.0.path=data/nosuch.jsonl", "data/nosuch.jsonl: no such file"),
        ("data.0.path=bad.jsonl", "bad.jsonl: none of the first 100 rows can be used"),
        ("base=./nosuch", "./nosuch: cannot load its config"),
        ("base={path: here}", "here: cannot load its config"),
        ("trainer.lr_scheduler_type=nosuch", "trainer: "),
        ("rope={type: linear, factor: 0.5}", "factor is 0.5"),
        (
            "methods.skipalign={key_bias: gap, base: {attn_implementation: 'paged|eager'}}",
            "which are not known to reach this implementation",
        ),
        ("methods.packed.strategy={name: pose, max_position: 512}", "a causal pack is one text"),
        ("evaluation={needle: {lengths: [12]}}", "context_length 12: template, question and"),
        (
            "evaluation={stretch: {context_length: 12, distances: [64]}}",
            "context_length 12: template, question",
        ),
        ("evaluation={perplexity: {lengths: [100000]}}", "documents with windows of up to 100,000"),
    ],
)
def test_what_would_stop_the_run_stops_the_dry_run(override: str, part: str):
    Path("bad.jsonl").write_text("no json\n" * 150)
    Path("here").mkdir()
    with pytest.raises(SkipalignError) as found:
        examined(override)
    assert part in str(found.value)


def test_a_base_that_cannot_skip_is_refused(tmp_path: Path):
    shutil.copytree(tiny.BASE, tmp_path / "dynamic")
    path = tmp_path / "dynamic/config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    path.write_text(json.dumps(config))
    with pytest.raises(SkipalignError, match="largest position of the whole batch"):
        examined("base=./dynamic")


def test_the_lines_are_a_table_and_what_was_not_looked_at():
    found = plan.lines(examined("base=someone/large"))
    assert found[0].split()[:4] == ["method", "seed", "base", "max_position"]
    assert found[-2].split() == ["skipalign", "1", "someone/large", "4,096", "3", "epochs", "1,024"]
    assert found[-1] == "not looked at: base someone/large, which is not on this machine"


def test_an_extension_that_reaches_less_far_than_the_positions_is_told():
    found = examined("rope={type: ntk, factor: 8}")
    told = "rope ntk: window 128 x factor 8 = 1,024 < max_position 4,096; "
    cure = "where that is not meant, give a factor of 32 (base, skipalign)"
    assert f"warning: {told}{cure}" in plan.lines(found)
    (told,) = examined()["warnings"]
    assert told.startswith("rope none: window 128 < max_position 4,096; where that is not meant, ")
    assert examined("rope=ntk")["warnings"] == [], "the factor follows max_position"


def test_the_study_for_a_gpu_is_ready_on_any_machine():
    found = plan.examine(load("study-gpu").trainings())
    notes = [note for note in found["notes"] if not note.startswith("trainer.bf16")]
    assert notes == [
        "data HuggingFaceH4/ultrachat_200k, which is not on this machine",
        "data THUDM/LongAlign-10k, which is not on this machine",
        "base Qwen/Qwen3-0.6B-Base, which is not on this machine",
    ]
    rows = found["trainings"]
    methods = {row["method"] for row in rows}
    assert methods == set(load("study-tiny").methods)
    trained = [row for row in rows if row["steps"] is not None]
    assert len(trained) == 3 * (len(methods) - 4)
    per_step = {row["method"]: row["tokens_per_step"] for row in trained}
    assert per_step.pop("long") == 2 * 131_072  # at most; its conversations fill half of it
    assert set(per_step.values()) == {131_072}


def test_methods_of_the_tiny_study_see_equally_many_tokens_a_step():
    found = plan.examine(load("study-tiny").trainings())
    per_step = {row["method"]: row["tokens_per_step"] for row in found["trainings"]}
    assert per_step.pop("long") == 7 * 1024  # at most; its conversations fill four of seven
    assert set(per_step.values()) == {None, 4096}
    assert len(per_step) >= 20
    bases = {(row["seed"], row["base"]) for row in found["trainings"]}
    assert bases == {(seed, f"tiny-{seed}") for seed in range(3)}


def test_the_ablation_is_the_whole_grid_and_one_without_skips():
    rows = plan.examine(load("ablation-tiny").trainings())["trainings"]
    assert len(rows) == 3 * 21
    assert [row["method"] for row in rows].count("skip-fraction-0") == 3
    assert {row["max_position"] for row in rows} == {256, 512, 1024, 2048, 4096}


@pytest.mark.parametrize(
    ("name", "num_trainings"),
    [
        *(("ablation", 63), ("bias-controls", 39), ("tuning", 50), ("confirmation", 56)),
        ("variants", 45),
        ("shapes", 28),
        ("no-questions", 27),
    ],
)
def test_the_studies_of_the_tiny_model_are_ready_to_run(name: str, num_trainings: int):
    found = plan.examine(load(f"{name}-tiny").trainings())
    assert len(found["trainings"]) == num_trainings
