"""What a plan says of a recipe: the same numbers that arithmetic by hand gives."""

import json
from pathlib import Path

import pytest

from skipalign import budget
from skipalign.costs import PARTS, Load, memory, token_flops
from skipalign.errors import SkipalignError
from skipalign.recipe import load
from skipalign.shapes import read_architecture, shape_of

ARCHITECTURE = Path(__file__).parents[1] / "recipes/architectures/llama-2-7b.json"
RECIPE = """
base: someone/model
architecture: made.json
data: {path: someone/chats, name: short, max_tokens: 4096}
rope: {type: ntk, factor: 12.5}
trainer:
  {max_steps: 100, per_device_train_batch_size: 2, gradient_accumulation_steps: 4, bf16: true}
seeds: [0, 1]
methods:
  base: {strategy: contiguous, train: false}
  normal: {strategy: contiguous}
  skipalign: {strategy: {name: skipalign, max_position: 50000}}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("made.json").write_text(ARCHITECTURE.read_text())
    Path("own.yaml").write_text(RECIPE)


def planned(*overrides: str, **given: object) -> dict:
    return budget.estimate(load("own.yaml", overrides).trainings(), **given)


def test_the_numbers_are_those_of_the_recipe():
    found = planned()
    shape = shape_of(read_architecture("made.json"), where="here")
    assert [each["method"] for each in found["methods"]] == ["normal", "skipalign"]
    normal, skipped = found["methods"]
    assert normal["full_length"] is None
    asked, full = skipped["as_asked"], skipped["full_length"]
    assert normal["as_asked"] == asked
    assert asked["tokens"] == full["tokens"] == 100 * 2 * 4 * 4096
    assert asked["flops"] == asked["tokens"] * token_flops(shape, 4096)
    assert full["flops"] == full["tokens"] * token_flops(shape, 50_000)
    hours = asked["flops"] / (0.4 * 989.4e12) / 3600
    assert asked["gpu_hours"] == pytest.approx(hours)
    assert full["gpu_hours"] == pytest.approx(hours * full["flops"] / asked["flops"])
    longer = full["gpu_hours_of_as_many_samples"]
    assert longer == pytest.approx(full["gpu_hours"] * 50_000 / 4096)
    step = Load(rows=2, tokens=4096, autocast=True, accumulates=True, mask="padding")
    assert asked["memory"]["peak"] == memory(shape, step).peak
    row = Load(rows=1, tokens=50_000, autocast=True, accumulates=True)
    assert full["memory"]["peak"] == memory(shape, row).peak
    assert (asked["gpus_needed"], full["gpus_needed"]) == (32, None)


def test_settings_change_what_they_are_about():
    first = planned()["methods"][1]["as_asked"]

    def changed(*overrides: str, **given: object) -> dict:
        return planned(*overrides, **given)["methods"][1]["as_asked"]

    assert changed(gpus=8)["tokens"] == 8 * first["tokens"]
    assert changed(mfu=0.2)["gpu_hours"] == pytest.approx(2 * first["gpu_hours"])
    checkpointed = changed("trainer.activation_checkpointing=true")
    assert checkpointed["gpu_hours"] == pytest.approx(first["gpu_hours"] * 4 / 3)
    assert checkpointed["memory"]["peak"] < first["memory"]["peak"] - 20 * 2**30
    slow = changed("trainer.bf16=false")["gpu_hours"]
    assert slow == pytest.approx(first["gpu_hours"] * 989.4 / 66.9)
    low_rank = changed("adapter={type: lora, r: 8}")
    assert low_rank["gpus_needed"] < first["gpus_needed"]
    assert low_rank["flops"] < 0.7 * first["flops"]
    in_four = changed("adapter={type: qlora, r: 8}")["memory"]["parts"]["weights"]
    assert in_four < low_rank["memory"]["parts"]["weights"] / 3
    shared = changed(gpus=4, shared=True)["memory"]["parts"]
    assert shared["optimizer"] * 4 == first["memory"]["parts"]["optimizer"]
    biased = changed("methods.skipalign.key_bias=gap")["memory"]["parts"]
    assert biased["temporary"] > first["memory"]["parts"]["temporary"]
    flash = changed("base.attn_implementation=flash_attention_2")["memory"]["parts"]
    assert flash["activations"] < first["memory"]["parts"]["activations"]
    assert changed("trainer.use_liger_kernel=true")["memory"]["parts"]["logits"] == 0
    assert changed("trainer.max_steps=-1")["gpu_hours"] is None


def test_a_mixture_of_lengths_counts_each_token_in_its_own_row():
    data = (
        "data=[{path: a/b, name: short, max_tokens: 1024, weight: 0.9},"
        " {path: c/d, name: long, max_tokens: 16384, weight: 0.1}]"
    )
    found = planned(data, "methods={normal: {strategy: contiguous}}")["methods"][0]["as_asked"]
    shape = shape_of(read_architecture("made.json"), where="here")
    flops = 0.9 * token_flops(shape, 1024) + 0.1 * token_flops(shape, 16384)
    assert found["flops_per_token"] == pytest.approx(flops)
    # Of 8 rows a step, so many are short that nine tenths of the tokens stand in them.
    assert found["tokens"] == round(100 * 8 / (0.9 / 1024 + 0.1 / 16384))
    assert found["tokens_per_row"] == 16384


@pytest.mark.parametrize(
    ("overrides", "given", "part"),
    [
        ((), {"gpu": "abacus"}, "no GPU 'abacus' is known; give one of h100"),
        ((), {"mfu": 0.0}, "mfu is 0.0; it is a share"),
        ((), {"mfu": 1.5}, "mfu is 1.5; it is a share"),
        (("architecture=null",), {}, "someone/model is not on this machine; name the numbers"),
        (("architecture=nosuch.json",), {}, "nosuch.json: cannot be read"),
        (("trainer.optim=adafactor",), {}, "'adafactor'; what it keeps"),
        (("adapter={type: lora, target_modules: [nosuch]}",), {}, "names nosuch; a plan knows"),
        (("methods={base: {strategy: contiguous, train: false}}",), {}, "nothing to plan"),
    ],
)
def test_what_cannot_be_planned_is_refused(overrides: tuple[str, ...], given: dict, part: str):
    with pytest.raises(SkipalignError) as found:
        planned(*overrides, **given)
    assert part in str(found.value)


def test_a_base_that_holds_the_range_already_is_pointed_out():
    described = json.loads(Path("made.json").read_text())
    assert planned()["notes"] == []
    described["config"]["max_position_embeddings"] = 65536
    Path("made.json").write_text(json.dumps(described))
    (note,) = planned()["notes"]
    assert "its own window of 65,536 positions holds all 50,000" in note
    assert "docs/when-not.md" in note


def test_the_lines_say_all_of_it():
    text = "\n".join(budget.lines(planned()))
    assert text.startswith("someone/model: 6,738,415,616 parameters, window 4,096\n")
    for word in (*PARTS, "at full length", "not at all", "32 GPUs, shared", "MFU 40%", "3,276,800"):
        assert word in text
    assert max(map(len, text.splitlines())) < 170
