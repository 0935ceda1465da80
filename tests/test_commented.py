"""The text of a recipe with its reasons: it reads as the choices it was made of."""

import dataclasses
from pathlib import Path
from typing import Any

from skipalign import recipe
from skipalign.commented import Choices, Found, Way, commented, counted, gib
from skipalign.survey import DataFacts, DeviceFacts, ModelFacts

MODEL = ModelFacts(
    path="models/one",
    family="llama",
    window=4096,
    rope_type="default",
    parameters=7_000_000_000,
    dtype="bfloat16",
    attn_implementation="sdpa",
)
DATA = DataFacts(
    path="chats.jsonl",
    shape="messages",
    rows=1000,
    whole=True,
    rejected={"not_json": 2},
    first_rejection="chats.jsonl line 3: not JSON",
    sampled=500,
    quantiles={"0.5": 310, "0.9": 1500, "0.95": 2100, "0.99": 4000},
    longest=9000,
    dropped={},
    multi_turn=120,
    notes={},
    template="tokenizer",
    marks_answers=False,
)
DEVICE = DeviceFacts(name="h100", memory=80 * 10**9, bf16=True, on_gpu=True, gpu="h100")
CHOICES = Choices(
    max_position=32768,
    rope="ntk",
    max_tokens=4096,
    rows=16,
    steps=188,
    lengths=(4096, 8192, 16384, 32768),
    context_length=2048,
    way=Way(adapter="lora", rows=2, recomputes=True),
)
FOUND = Found(
    model=MODEL,
    data=[DATA],
    device=DEVICE,
    choices=CHOICES,
    cuts=[{"longer": 3, "dropped": 2, "shortened": 1}],
    memory=40 * 2**30,
    hours=1.234,
    fits=True,
)


def with_choices(**changed: Any) -> Found:
    return dataclasses.replace(FOUND, choices=dataclasses.replace(CHOICES, **changed))


def read(found: Found, folder: Path) -> recipe.Recipe:
    path = folder / "recipe.yaml"
    path.write_text(commented(found))
    return recipe.load(path)


def test_the_recipe_reads_as_the_choices(tmp_path: Path):
    (training,) = read(FOUND, tmp_path).trainings()
    assert training.base.path == "models/one"
    assert training.base.dtype == "bfloat16"  # frozen beside an adapter
    assert training.max_position == 32768
    assert training.rope.type == "ntk"
    assert training.adapter is not None
    assert training.adapter.type == "lora"
    assert [each.max_tokens for each in training.sources] == [4096]
    assert training.trainer["gradient_accumulation_steps"] == 8
    assert training.trainer["bf16"] is True
    assert training.tasks["needle"].lengths == CHOICES.lengths
    assert training.tasks["stretch"].distances == CHOICES.lengths
    assert training.tasks["stretch"].context_length == 2048


def test_weights_that_train_are_kept_in_float32(tmp_path: Path):
    way = Way(adapter=None, rows=2, recomputes=False)
    (training,) = read(with_choices(way=way), tmp_path).trainings()
    assert (training.base.dtype, training.adapter) == ("float32", None)


def test_every_choice_has_its_reason():
    text = " ".join(line.removeprefix("# ") for line in commented(FOUND).splitlines())
    text = " ".join(text.replace("  # ", " ").split())
    for part in (
        "310 tokens at the median, 2,100 at 95%",
        "3 of 500 are longer than 4,096: 1 shortened (early turns go first), 2 dropped",
        "LoRA (pip install 'skipalign[peft]'), as more does not fit:",
        "120 of 500 looked at have several turns",
        "not_json 2",
        "slows its RoPE by 32,768 / 4,096 = 8",
        "40 GiB by skipalign plan, of the 74.5 GiB of h100, 1.2 GPU hours",
        "188 steps of 16 rows see the 998 rows 3.0 times",
    ):
        assert part in text
    lines = commented(FOUND).splitlines()
    assert max(map(len, lines)) <= 98
    yaml = [line for line in lines if not line.lstrip().startswith("#")]
    assert 10 <= len(yaml) <= 20


def test_where_the_window_holds_the_target_plain_fine_tuning_is_compared(tmp_path: Path):
    found = read(with_choices(max_position=4096, rope="none", lengths=(2048, 4096)), tmp_path)
    assert list(found.methods) == ["normal", "skipalign"]
    assert "docs/when-not.md" in commented(with_choices(max_position=4096, rope="none"))


def test_text_of_others_stays_text(tmp_path: Path):
    path = "chats: {x}\n# \u202e: [1].jsonl"
    data = dataclasses.replace(DATA, path=path, shape="messages\nbase: other")
    model = dataclasses.replace(MODEL, path="yes", rope_type="a\nseed: 7")
    found = dataclasses.replace(FOUND, data=[data], model=model)
    (training,) = read(found, tmp_path).trainings()
    assert [each.path for each in training.sources] == [path]
    assert (training.base.path, training.seed) == ("yes", 0)


def test_two_files_of_one_name_get_two(tmp_path: Path):
    paths = ("chats-2.jsonl", "a/chats.jsonl", "b/chats.jsonl")  # as a shell sorts them
    data = [dataclasses.replace(DATA, path=each) for each in paths]
    found = dataclasses.replace(FOUND, data=data, cuts=FOUND.cuts * 3)
    (training,) = read(found, tmp_path).trainings()
    assert [each.name for each in training.sources] == ["chats-2", "chats", "chats-3"]


def test_nothing_is_evaluated_where_no_prompt_holds_a_needle(tmp_path: Path):
    assert read(with_choices(lengths=()), tmp_path).tasks == {}


def test_numbers_are_written_for_people():
    assert counted({"a": 2, "b": 3000, "c": 2}) == "b 3,000, a 2, c 2"
    assert (gib(80 * 10**9), gib(2**20)) == ("74.5 GiB", "1 MiB")
