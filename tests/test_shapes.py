"""Architecture files hold the numbers of published configs; others are refused with a reason."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2Config

from skipalign.errors import ModelError
from skipalign.shapes import read_architecture, shape_of

FILES = sorted((Path(__file__).parents[1] / "recipes/architectures").glob("*.json"))
# What the model cards say, in billions.
BILLIONS = {
    "llama-2-7b": (6.74, 4_096),
    "llama-3.1-8b": (8.03, 131_072),
    "mistral-7b-v0.3": (7.25, 32_768),
    "qwen3-0.6b": (0.60, 32_768),
    "qwen3-8b": (8.19, 32_768),
    "yi-6b-200k": (6.06, 200_000),
}


def test_there_is_one_file_for_each_model():
    assert [path.stem for path in FILES] == list(BILLIONS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_model_of_the_published_numbers_has_the_published_size(path: Path):
    config = read_architecture(str(path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config, where=path.name)
    assert shape.parameters == sum(each.numel() for each in model.parameters())
    assert (round(shape.parameters / 1e9, 2), shape.window) == BILLIONS[path.stem]
    assert "config.json of " in json.loads(path.read_text())["source"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "cannot be read"),
        ("no json", "cannot be read"),
        ("[]", "must hold `source`"),
        ('{"config": {"model_type": "llama"}}', "must hold `source`"),
        ('{"source": "a page"}', "must hold `source`"),
        ('{"source": "a page", "config": {}}', "no config of model_type 'missing'"),
        ('{"source": "a page", "config": {"model_type": "nosuch"}}', "model_type 'nosuch'"),
    ],
)
def test_a_file_that_describes_no_model_is_refused(tmp_path: Path, text: str | None, part: str):
    path = tmp_path / "made.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError) as found:
        read_architecture(str(path))
    assert part in str(found.value)
    assert str(path) in str(found.value)


def test_layers_that_are_not_counted_are_refused():
    with pytest.raises(ModelError, match="what a mixtral costs is not known"):
        shape_of(MixtralConfig(), where="here")
    biased = read_architecture(str(FILES[0]))
    biased.attention_bias = True
    with pytest.raises(ModelError, match="attention_bias or mlp_bias"):
        shape_of(biased, where="here")


def test_a_qwen2_has_biases_by_itself():
    assert shape_of(Qwen2Config(), where="here").qkv_bias
