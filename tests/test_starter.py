"""From a model, data and a device to a recipe: what is chosen, what is refused, that it runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from made_models import families
from skipalign import recipe, starter, study, tiny
from skipalign.commented import Found, commented
from skipalign.errors import ModelError, RecipeError
from skipalign.model import load_tokenizer

SIZES = {"vocab_size": 1280, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
OTHERS: dict[str, Any] = {"qwen2": {}, "phi3": {"pad_token_id": 0}, "mixtral": {}}
GEMMA = {"head_dim": 16, "sliding_window": 4096}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [[("user", f"Who is {n}?"), ("assistant", "Me. " * (1 + n % 7))] for n in range(120)]
    rows = [[{"role": role, "content": text} for role, text in each] for each in lines]
    text = "\n".join(json.dumps({"messages": each}) for each in rows)
    Path("chats.jsonl").write_text(text + "\nno json\n")


def made(config: Any) -> str:
    """Leave a folder with a config and a tokenizer; no weights are read by `init`."""
    config.save_pretrained("model")
    load_tokenizer(str(tiny.BASE)).save_pretrained("model")
    return "model"


def named(family: str, **fields: Any) -> str:
    return made(AutoConfig.for_model(family, **(SIZES | fields)))


def written(found: Found) -> recipe.Recipe:
    Path("recipe.yaml").write_text(commented(found))
    return recipe.load("recipe.yaml")


@pytest.mark.parametrize("family", families())
def test_a_recipe_for_each_family_passes_the_dry_run(family: str):
    _, config = families(vocab_size=1280)[family]
    found = starter.start(made(config()), ["chats.jsonl"], max_position=16384, gpu="l40s")
    (training,) = written(found).trainings()
    assert training.max_position == 16384
    assert training.tasks["needle"].lengths == (2048, 4096, 8192, 16384)
    assert training.tasks["stretch"].context_length <= 2048
    assert found.memory is not None
    assert found.hours is not None
    assert found.fits


@pytest.mark.parametrize("family", OTHERS)
def test_families_that_are_not_counted_are_planned_by_their_weights(family: str):
    found = starter.start(named(family, **OTHERS[family]), ["chats.jsonl"])
    assert written(found).trainings()[0].max_position == 16384
    assert found.fits
    assert (found.memory is None) == (family != "qwen2")


def test_attention_is_what_transformers_takes():
    found = starter.start(named("gemma2", **GEMMA), ["chats.jsonl"], max_position=4096)
    assert {each.base.attn_implementation for each in written(found).trainings()} == {"eager"}


def test_no_prompt_is_made_as_long_as_what_is_to_be_reached(monkeypatch: pytest.MonkeyPatch):
    """A slip of max_position must not lay out a text of as many tokens."""
    made_lengths: list[int] = []
    make = starter.PromptMaker.make
    monkeypatch.setattr(
        starter.PromptMaker,
        "make",
        lambda maker, length, *given: made_lengths.append(length) or make(maker, length, *given),
    )
    found = starter.start("tiny", ["chats.jsonl"], max_position=2**31 - 1)
    assert found.choices.lengths[-1] == 2**31 - 1
    assert max(made_lengths) < 1000
    with pytest.raises(RecipeError, match=r"^strategy skipalign: max_position is .* at most 2,147"):
        starter.start("tiny", ["chats.jsonl"], max_position=10**11)


def test_the_tiny_base_is_asked_what_it_knows():
    found = starter.start("tiny", ["chats.jsonl"], max_position=4096)
    (training,) = written(found).trainings()
    asked = recipe.load("tiny").tasks["needle"]
    assert training.tasks["needle"].needle == asked.needle
    assert training.tasks["needle"].keys == asked.keys
    assert training.tasks["needle"].lengths == (128, 256, 512, 1024, 2048, 4096)
    demo = recipe.load("tiny").trainings()[0].trainer
    tokens = training.trainer["per_device_train_batch_size"] * training.sources[0].max_tokens
    wanted = demo["learning_rate"] * tokens / (demo["per_device_train_batch_size"] * 128)
    assert training.trainer["learning_rate"] == pytest.approx(wanted, rel=0.1)


def test_a_window_that_holds_the_target_says_that_skips_are_not_needed():
    found = starter.start("tiny", ["chats.jsonl"], max_position=128)
    assert any("skips are probably not needed" in note for note in starter.notes(found))
    assert list(written(found).methods) == ["normal", "skipalign"]
    assert not starter.described(found)["skips_needed"]
    further = starter.start("tiny", ["chats.jsonl"], max_position=129)
    assert not any("not needed" in note for note in starter.notes(further))


def test_rope_is_not_stretched_twice():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    path = named("llama", rope_parameters=rope)
    assert starter.start(path, ["chats.jsonl"]).choices.max_position == 4096
    found = starter.start(path, ["chats.jsonl"], max_position=8192)
    assert written(found).trainings()[0].rope.type == "none"
    assert any("stretched twice" in note for note in starter.notes(found))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"sliding_window": 512}, "see 512 tokens back"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic' chooses its frequencies",
        ),
    ],
    ids=["window", "dynamic"],
)
def test_what_training_refuses_is_refused_before_the_data_is_read(
    fields: dict[str, Any], part: str
):
    with pytest.raises(ModelError, match=part):
        starter.start(named("mistral", **({"sliding_window": None} | fields)), ["nosuch.jsonl"])


def test_a_model_that_does_not_fit_whole_gets_an_adapter():
    seven = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    seven |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    path = named("llama", **seven)
    ways = {gpu: starter.start(path, ["chats.jsonl"], gpu=gpu) for gpu in ("h200", "h100")}
    assert ways["h200"].choices.way.adapter is None
    assert ways["h100"].choices.way.adapter == "lora"
    assert all(each.fits for each in ways.values())
    bigger = named("llama", **(seven | {"hidden_size": 16384, "num_hidden_layers": 32}))
    found = starter.start(bigger, ["chats.jsonl"], gpu="rtx4090")
    assert not found.fits
    assert any("too few for the leanest way" in note for note in starter.notes(found))
    assert "which is more than" in commented(found)


def test_a_range_too_short_is_refused():
    with pytest.raises(RecipeError, match="max_position is 100"):
        starter.start("tiny", ["chats.jsonl"], max_position=100)


def test_data_that_needs_a_word_gets_one():
    Path("few.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    path = named("llama")
    Path(path, "chat_template.jinja").unlink()
    told = " | ".join(starter.notes(starter.start(path, ["few.jsonl", "chats.jsonl"])))
    assert "few.jsonl: 1 rows are enough to see it run" in told
    assert "chats.jsonl: rejected not_json 1" in told
    assert "no chat template" in told


@pytest.mark.long
def test_the_recipe_of_the_tiny_base_trains():
    found = starter.start("tiny", ["chats.jsonl"], max_position=512)
    (training,) = written(found).trainings()
    study.prepare([training], Path("run"))
    assert study.train(training, Path("run"))["steps"] == found.choices.steps
