"""Recipes for real models: they load, are ready on any machine, cost what they say, and train.

What trains is a shrunken random model of the same architecture, on a few made conversations.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from skipalign import budget, plan, study, tiny
from skipalign.model import load_model, load_tokenizer, save_model
from skipalign.recipe import load
from skipalign.shapes import read_architecture

RECIPES = Path(__file__).parents[1] / "recipes"
MODELS = sorted(path.stem for path in (RECIPES / "architectures").glob("*.json"))
STAGES = ("two-stages-1", "two-stages-2")
ARMS = ("normal", "skipalign", "mixed")
METHODS = (*ARMS, *(f"{arm}-lora" for arm in ARMS))


def shrunken(name: str, folder: Path) -> Path:
    """Leave a random model of two narrow layers in the shape of an architecture."""
    described = json.loads((RECIPES / f"architectures/{name}.json").read_text())
    config, tokenizer = described["config"], load_tokenizer(str(tiny.BASE))
    config["num_key_value_heads"] = (
        4 * config["num_key_value_heads"] // config["num_attention_heads"] or 1
    )
    config |= {"num_attention_heads": 4, "head_dim": 16, "num_hidden_layers": 2}
    config |= {"hidden_size": 64, "intermediate_size": 96, "vocab_size": len(tokenizer)}
    Path("small.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(read_architecture("small.json"))
    save_model(model, tokenizer, folder)
    return folder


def overrides(name: str, base: Path) -> list[str]:
    """Return what makes a recipe small: its base, its data, its precision and its steps."""
    tree = load(name)
    changed = [f"base.path={base}", "trainer.max_steps=3", "trainer.gradient_accumulation_steps=1"]
    changed += ["trainer.bf16=false", "trainer.optim=adamw_torch", "trainer.use_cpu=true"]
    changed += ["trainer.warmup_steps=1", "trainer.logging_steps=1"]
    for method, settings in tree.methods.items():
        own = f"methods.{method}." if method.startswith("mixed") else ""
        for place, source in enumerate(settings.sources):
            file = "documents.jsonl" if source.shape == "text" else "chats.jsonl"
            changed.append(f"{own}data.{place}.path={file}")
            changed.append(f"{own}data.{place}.max_tokens={160 if source.name == 'long' else 96}")
    return list(dict.fromkeys(changed))


def train(name: str, base: Path, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    """Prepare and train methods of a recipe; return what each left in training.json."""
    found: dict[str, Any] = {}
    run = Path("runs", name)
    for training in load(name, overrides(name, base)).trainings():
        if training.method in methods:
            study.prepare([training], run)
            found[training.method] = study.train(training, run)
            assert (run / training.directory / "model").is_dir()
            losses = (run / training.directory / "loss.jsonl").read_text().splitlines()
            assert [json.loads(line)["loss"] > 0 for line in losses] == [True] * 3
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    turns = [
        {"role": "user", "content": "A bird sat on the wall. Who sat there?"},
        {"role": "assistant", "content": "The bird sat on the wall."},
    ]
    rows = [json.dumps({"messages": turns * (1 + place % 3)}) for place in range(24)]
    Path("chats.jsonl").write_text("\n".join(rows))
    text = "It was a long day. The bird sat on the wall. Nobody came. "
    Path("documents.jsonl").write_text("\n".join([json.dumps({"text": 4 * text})] * 24))
    return tmp_path


def test_there_is_a_recipe_for_each_architecture():
    for name in MODELS:
        recipe = load(name)
        assert tuple(recipe.methods) == METHODS
        assert {each.architecture for each in recipe.trainings()} == {
            str(RECIPES / f"architectures/{name}.json")
        }


@pytest.mark.parametrize("name", [*MODELS, *STAGES])
def test_a_recipe_is_ready_on_any_machine(name: str, folder: Path):
    found = plan.examine(load(name).trainings())
    assert len(found["trainings"]) == (len(METHODS) if name in MODELS else 1)
    notes = [note for note in found["notes"] if not note.startswith("trainer.bf16")]
    assert all(note.endswith("not on this machine") for note in notes)
    assert sum(note.startswith("base ") for note in notes) == 1


@pytest.mark.parametrize("name", [*MODELS, *STAGES])
def test_a_recipe_costs_what_it_says(name: str):
    text = (RECIPES / f"{name}.yaml").read_text()
    (gpu,) = re.findall(rf"`skipalign plan {name} --gpu (\w+)`", text)
    said = re.findall(r"^# ([a-z-]+): (\d+) GiB, ([\d.]+) GPU hours$", text, re.MULTILINE)
    found = budget.estimate(load(name).trainings(), gpu=gpu)
    costs = [(each["method"], each["as_asked"]) for each in found["methods"]]
    assert said == [
        (method, f"{each['memory']['peak'] / 2**30:.0f}", f"{each['gpu_hours']:.1f}")
        for method, each in costs
    ]
    assert {each["gpus_needed"] for _, each in costs} == {1}
    assert f"{found['methods'][0]['window']:,}" in text or name == STAGES[1]


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_says_how_it_is_run_with_the_same_steps_on_many_gpus(name: str):
    text = (RECIPES / f"{name}.yaml").read_text()
    assert f"#     skipalign run {name} " in text
    several = re.search(r"--num_processes (\d+) .*?-m skipalign train (.*?) # one arm", text, re.S)
    assert (several is None) == (name == "qwen3-0.6b"), "which is for one small GPU"
    if several is None:
        return
    named, *words = several[2].replace("\\\n#", "").split()
    changed = [word for word in words if "=" in word]
    (method,) = (each for each in load(name, changed).trainings() if each.method in words)
    (alone,) = (each for each in load(name).trainings() if each.method == method.method)
    assert (named, method.method) == (name, "skipalign")
    rows = int(several[1]) * method.trainer["gradient_accumulation_steps"]
    assert rows == alone.trainer["gradient_accumulation_steps"]


def test_skipalign_trains_in_the_shape_of_a_real_model(folder: Path):
    base = shrunken("qwen3-0.6b", folder / "base")
    found = train("qwen3-0.6b", base, ("skipalign", "skipalign-lora"))
    assert [each["steps"] for each in found.values()] == [3, 3]


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_every_arm_trains_in_the_shape_of_its_model(name: str, folder: Path):
    found = train(name, shrunken(name, folder / "base"))
    assert tuple(found) == METHODS
    assert {each["steps"] for each in found.values()} == {3}


@pytest.mark.long
def test_the_second_stage_goes_on_from_the_first(folder: Path):
    first, second = STAGES
    train(first, shrunken("qwen3-0.6b", folder / "base"), ("skipalign",))
    left = Path("runs", first, "model")
    rope = load_model(str(left)).config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("yarn", 4.0)
    assert load(second).trainings()[0].base.path == str(left)
    train(second, left, ("skipalign",))
    assert load_model(str(Path("runs", second, "model"))).config.rope_parameters == rope
