"""The schema: made from the rooms' own dataclasses; every mistake named with its key path."""

import dataclasses

import pytest

from skipalign import rope
from skipalign.errors import RecipeError
from skipalign.evaluation.needle import NeedleSettings
from skipalign.key_bias import KEY_BIASES, GapBias, NoiseBias
from skipalign.packing import Packing
from skipalign.positions import STRATEGIES, SkipAlign
from skipalign.prepare import Source
from skipalign.schema import Base, Settings, Shared, plain, read, read_task
from skipalign.tiny.corpus import KEYS, VALUES
from skipalign.yaml_tree import spelled_out

REQUIRED = {"max_position": 64}
EVERY_REQUIRED = {**REQUIRED, "markers": (5, 7)}


def settings(**keys: object) -> Settings:
    tree = {"base": "b", "data": "d.jsonl", "strategy": "contiguous", **keys}
    return read(Settings, spelled_out(tree), "r.yaml")


def refused(**keys: object) -> str:
    with pytest.raises(RecipeError) as found:
        settings(**keys)
    message = str(found.value)
    assert "\n" not in message
    return message.removeprefix("r.yaml: ")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_can_be_named_with_each_of_its_own_fields(name: str):
    strategy = STRATEGIES[name]
    fields = dataclasses.fields(strategy)
    needed = {f.name: EVERY_REQUIRED[f.name] for f in fields if f.default is dataclasses.MISSING}
    made = strategy(**needed)
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    found = settings(strategy={"name": name, **plain(fields)}).strategy
    assert found == made
    assert type(found) is strategy


@pytest.mark.parametrize("name", KEY_BIASES)
def test_every_key_bias_can_be_named(name: str):
    assert settings(key_bias=name).key_bias == KEY_BIASES[name]()


@pytest.mark.parametrize("name", rope.ROPE_EXTENSIONS)
def test_every_rope_extension_can_be_named(name: str):
    assert settings(rope=name).rope == rope.ROPE_EXTENSIONS[name]()


def test_what_is_left_out_has_the_defaults_of_its_room():
    found = settings()
    assert found.rope == rope.NoExtension()
    assert found.key_bias is None
    assert found.sources == (Source("d.jsonl", "d"),)
    assert found.trainer == {}
    assert found.train is True


def test_the_base_is_that_of_the_study():
    from skipalign import resolved

    assert resolved.Base(**Base(path="x").model_dump()) == resolved.Base(path="x")
    names = [field.name for field in dataclasses.fields(resolved.Base)]
    assert names == list(Base.model_fields)


def test_packing_and_logit_scale_are_read():
    assert settings().packing is settings().logit_scale is None
    found = settings(packing={"max_tokens": 9, "loss": "sample"}, logit_scale="span")
    assert found.packing == Packing(max_tokens=9, loss="sample")
    assert found.logit_scale == "span"
    assert settings(**plain(found)) == found
    assert settings(logit_scale=0.7).logit_scale == 0.7
    none = settings(packing="none", logit_scale="none")
    assert none.packing is none.logit_scale is None


def test_what_is_not_trained_needs_no_strategy():
    found = settings(strategy=None, train=False)
    assert found.strategies == {"d": STRATEGIES["contiguous"]()}


def test_sources_have_their_own_strategy_or_the_common_one():
    found = settings(data=["a.jsonl", {"path": "b.csv", "strategy": {"name": "pose", **REQUIRED}}])
    assert found.strategies == {
        "a": STRATEGIES["contiguous"](),
        "b": STRATEGIES["pose"](max_position=64),
    }
    assert found.sources[1] == Source("b.csv", "b")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        settings().train = False  # pyright: ignore


@pytest.mark.parametrize(
    ("keys", "start", "part"),
    [
        (
            {"strategy": {"name": "pose", "max_positon": 4}},
            "strategy.max_positon: no such key",
            "'max_position'",
        ),
        ({"strategy": {"name": "pose"}}, "strategy.max_position: is missing", ""),
        (
            {"strategy": {"name": "poze", **REQUIRED}},
            "strategy: 'poze' is unknown",
            "did you mean 'pose'?",
        ),
        ({"strategy": {"max_position": 4}}, "strategy: does not say which", "name"),
        (
            {"strategy": {"name": "contiguous", **REQUIRED}},
            "strategy.max_position: no such key",
            "",
        ),
        (
            {"strategy": {"name": "pose", "max_position": "x"}},
            "strategy.max_position: is 'x'",
            "integer",
        ),
        ({"strategy": {"name": "skipalign", **REQUIRED, "law": "x"}}, "strategy", "stars_and_bars"),
        (
            {"strategy": {"name": "skipalign", **REQUIRED, "skip_at": [1]}},
            "strategy.skip_at.0: is 1",
            "string",
        ),
        ({"key_bias": {"name": "gap", "std": 1}}, "key_bias.std: no such key", ""),
        ({"key_bias": "gab"}, "key_bias: 'gab'", "'gap'"),
        ({"rope": {"type": "ntk", "factor": 0.5}}, "rope: rope ntk: factor is 0.5", "1 or more"),
        ({"base": {"path": "b", "dtype": "int8"}}, "base.dtype: is 'int8'", "bfloat16"),
        ({"base": {"dtype": "float32"}}, "base.path: is missing", ""),
        ({"data": []}, "data: holds 0", "at least 1"),
        ({"data": [{"name": "x"}]}, "data.0.path: is missing", ""),
        ({"data": ["a/x.jsonl", "b/x.jsonl"]}, "two sources", "'x'"),
        ({"data": {"path": "a", "weigth": 1}}, "data.0.weigth: no such key", "'weight'"),
        ({"strategy": None}, "strategy is missing", "contiguous"),
        ({"data": {"path": "a", "weight": 0}}, "data: the weight of 'a' is 0", "above 0"),
        ({"train": "perhaps"}, "train: is 'perhaps'", "boolean"),
        ({"trainer": [1]}, "trainer: is a list", "mapping"),
        ({"stratgy": 1}, "stratgy: no such key", "'strategy'"),
        ({"packing": {"max_tokens": 0}}, "packing: packing: max_tokens is 0", "length of a row"),
        ({"packing": {"max_token": 9}}, "packing.max_token: no such key", "'max_tokens'"),
        ({"packing": {"max_tokens": 9, "loss": "mean"}}, "packing.loss: is 'mean'", "'sample'"),
        ({"logit_scale": 0}, "logit_scale: logit_scale is 0", "above 0"),
        ({"logit_scale": "spam"}, "logit_scale: logit_scale is 'spam'", "span"),
        ({"logit_scale": True}, "logit_scale: logit_scale is True", "number"),
    ],
)
def test_mistakes_are_named_with_their_key_path(keys: dict[str, object], start: str, part: str):
    message = refused(**keys)
    assert message.startswith(start)
    assert part in message


def test_where_a_value_may_be_of_two_kinds_the_nearer_one_is_explained():
    with pytest.raises(RecipeError) as found:
        read_task("needle", {"lengths": [64], "depths": [0.5, "x"]}, "r")
    assert str(found.value).startswith("r: depths.1: is 'x'; it should be a valid number")


def test_tasks_are_read_as_their_settings():
    found = read_task("needle", {"lengths": [64, 128], "trials": {64: 3, 128: 2}, "depths": 3}, "r")
    assert found == NeedleSettings(lengths=(64, 128), trials={64: 3, 128: 2}, depths=3)
    with pytest.raises(RecipeError, match=r"r: lenghts: no such key; did you mean 'lengths'\?"):
        read_task("needle", {"lenghts": [64]}, "r")
    with pytest.raises(RecipeError, match=r"^r: .*must hold \{key\}"):
        read_task("needle", {"lengths": [64], "question": "Who?"}, "r")


def test_the_names_of_the_tiny_corpus_can_be_said_in_one_word():
    values = {"lengths": [64], "keys": "tiny", "values": "tiny"}
    found = read_task("needle", values, "r")
    assert (found.keys, found.values) == (KEYS, VALUES)
    tree = {"name": "n", "evaluation": {"needle": values}}
    assert read(Shared, tree, "r").evaluation.tasks == {"needle": found}
    with pytest.raises(RecipeError, match=r"^r: keys: is 'tinny'"):
        read_task("needle", {"lengths": [64], "keys": "tinny"}, "r")
    assert read_task("needle", {"lengths": [64], "haystack": "tiny"}, "r").haystack == "tiny"


def test_shared_keys_have_their_limits():
    for tree in ({"name": "n", "seed": -1}, {"name": "n", "seeds": []}, {"name": 5}, {}):
        with pytest.raises(RecipeError):
            read(Shared, tree, "r")


def test_plain_settings_read_as_themselves():
    for made in (
        SkipAlign(max_position=9, skip_at=("inner", "outer")),
        NoiseBias(std=2.0),
        GapBias(),
    ):
        key = "strategy" if isinstance(made, SkipAlign) else "key_bias"
        assert getattr(settings(**{key: plain(made)}), key) == made
    found = settings(rope={"parameters": {"rope_type": "yarn", "factor": 2.0}})
    assert settings(**plain(found)) == found
