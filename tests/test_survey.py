"""What `init` finds out about a model, data and a device."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from skipalign import survey, tiny
from skipalign.encoding import DEFAULT_TEMPLATE_NAME
from skipalign.errors import DataError, ModelError, RecipeError
from skipalign.model import load_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return load_tokenizer(str(tiny.BASE))


def row(words: int, turns: int = 1) -> str:
    pair = [("user", "Who is it?"), ("assistant", "Me. " * words)]
    messages = [{"role": role, "content": text} for role, text in pair * turns]
    return json.dumps({"messages": messages})


def write(*rows: str, name: str = "chats.jsonl") -> str:
    Path(name).write_text("\n".join(rows) + "\n")
    return name


def config(**fields: Any) -> str:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    family = fields.pop("model_type", "llama")
    made = AutoConfig.for_model(family, **sizes, max_position_embeddings=4096, **fields)
    made.save_pretrained("model")
    return "model"


def test_rows_are_counted_and_their_samples_measured(tokenizer: Any):
    rows = [row(1, turns=3), *[row(each) for each in range(1, 8)], "no json", '{"text": 3}']
    found = survey.Survey(write(*rows), tokenizer)
    facts = found.facts
    assert (facts.shape, facts.rows, facts.whole, facts.good) == ("messages", 10, True, 8)
    assert facts.rejected == {"not_json": 1, "content_not_text": 1}
    assert "line 9" in (facts.first_rejection or "")
    assert (facts.sampled, facts.multi_turn) == (8, 1)
    lengths = [facts.quantiles[each] for each in ("0.5", "0.95", "0.99")]
    assert lengths == sorted(lengths)
    assert lengths[-1] == facts.longest
    assert (facts.template, facts.marks_answers) == ("tokenizer", True)
    tokenizer.chat_template = None
    plain = survey.Survey(write(*rows), tokenizer).facts
    assert (plain.template, plain.marks_answers) == (DEFAULT_TEMPLATE_NAME, False)


def test_what_becomes_of_longer_rows_is_what_encoding_does(tokenizer: Any):
    found = survey.Survey(write(row(1), row(100), row(1, turns=8)), tokenizer)
    longest = found.facts.longest
    assert found.at(longest) == {"longer": 0, "dropped": 0, "shortened": 0}
    # The long answer cannot be cut and its row goes; of the many turns the early ones go.
    assert found.at(40) == {"longer": 2, "dropped": 1, "shortened": 1}


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ),
        ("alpaca", {"instruction": "a", "output": "b", "text": "a b"}),
        ("prompt_completion", {"prompt": "a", "completion": "b"}),
        ("text", {"text": "It is a truth universally acknowledged."}),
    ],
)
def test_the_shape_is_found(tokenizer: Any, shape: str, line: dict[str, Any]):
    assert survey.Survey(write(json.dumps(line)), tokenizer).facts.shape == shape


def test_a_sample_is_bounded_and_drawn_by_its_seed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(survey, "ROWS", 60)
    monkeypatch.setattr(survey, "SAMPLE", 10)
    path = write(*(row(1 + each) for each in range(100)))
    first = [survey.Survey(path, tokenizer, seed=seed).facts for seed in (0, 0, 1)]
    assert (first[0].rows, first[0].whole, first[0].sampled) == (60, False, 10)
    assert first[0] == first[1] != first[2]
    monkeypatch.setattr(survey, "ROWS", 100)
    assert survey.Survey(path, tokenizer).facts.whole


def test_data_without_a_good_row_is_refused(tokenizer: Any):
    with pytest.raises(DataError, match="not JSON"):
        survey.Survey(write("no json"), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(DataError, match=r"template_refused 1.*no users"):
        survey.Survey(write(row(1)), tokenizer)


def test_a_config_tells_family_window_weights_and_attention(tokenizer: Any):
    facts = survey.look_at_model("tiny")
    assert (facts.family, facts.window, facts.rope_type) == ("llama", 128, "default")
    assert facts.parameters == 492_160
    assert facts.attn_implementation == "sdpa"
    soft = survey.look_at_model(config(model_type="gemma2", head_dim=16))
    assert soft.attn_implementation == "eager"


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("gpt2", "no rotary position embedding"),
        ("gemma3_text", "one RoPE per kind of layer"),
        ("modernbert", "one RoPE per kind|no causal language model"),
        ("esm", "no rotary|no causal"),
    ],
)
def test_a_model_that_has_no_one_rope_is_refused(tokenizer: Any, family: str, part: str):
    with pytest.raises(ModelError, match=part):
        survey.look_at_model(config(model_type=family))


def test_a_model_that_skips_would_harm_is_refused_as_training_would(tokenizer: Any):
    path = config(model_type="mistral", sliding_window=512)
    survey.refuse_model(path, 512)
    with pytest.raises(ModelError, match="see 512 tokens back"):
        survey.refuse_model(path, 4096)


def test_an_adapter_is_refused(tokenizer: Any):
    path = config()
    Path(path, "adapter_config.json").write_text(
        '{"base_model_name_or_path": "x", "peft_type": "LORA"}'
    )
    Path(path, "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match="skipalign merge"):
        survey.look_at_model(path)


def test_the_device_is_the_one_named_or_what_is_here():
    assert survey.look_at_device("h200").memory == 141 * 10**9
    with pytest.raises(RecipeError, match="give one of h100"):
        survey.look_at_device("h9")
    assert survey.look_at_device(None).memory > 2**30


def test_a_driver_s_name_of_a_gpu_is_found_in_the_list():
    names = {"NVIDIA GeForce RTX 4090": "rtx4090", "NVIDIA H100 80GB HBM3": "h100"}
    names |= {"NVIDIA A100-SXM4-80GB": "a100", "Tesla T4": None}
    assert {name: survey.listed(name) for name in names} == names
