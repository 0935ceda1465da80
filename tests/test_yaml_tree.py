"""YAML as recipes use it: what is refused, short forms, merges, overrides."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipalign.errors import RecipeError
from skipalign.yaml_tree import merged, overridden, read_yaml, spelled_out, unused, write_yaml


def refused(text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(RecipeError) as found:
        read_yaml(raw, "r.yaml")
    message = str(found.value)
    assert message.startswith("r.yaml")
    assert "\n" not in message
    return message


def test_plain_data_is_read():
    text = b"a: [1, 2.5, yes, null, x]\nb: {c: 'd', 1: 2}\n"
    assert read_yaml(text, "r") == {"a": [1, 2.5, True, None, "x"], "b": {"c": "d", 1: 2}}
    assert read_yaml(b"", "r") is None
    assert read_yaml(b"\xef\xbb\xbfa: 1", "r") == {"a": 1}


@pytest.mark.parametrize("text", ["1e-4", "1E4", "2.5e+3", "-1.e3", ".5e1"])
def test_numbers_with_an_exponent_are_numbers(text: str):
    value = read_yaml(text.encode(), "r")
    assert isinstance(value, float)
    assert value == float(text)


@pytest.mark.parametrize("text", ["a: 1\na: 2", "x: {a: 1, b: 2, a: 3}", "a: 1\n'a': 2"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str):
    message = refused("\n" + text)
    assert message.endswith("'a' stands twice; remove one")
    assert f"line {3 if 'x:' not in text else 2}" in message


def test_a_tab_is_told_its_cure():
    message = refused("a:\n\tb: 1")
    assert message.startswith("r.yaml line 2: found character '\\t'")
    assert message.endswith("; indent with spaces")


def test_a_merged_key_may_be_given_again():
    text = b"b: &b {x: 2}\na: &a {<<: *b, x: 1}\nc: {<<: *a, x: 5}\n"
    assert read_yaml(text, "r") == {"b": {"x": 2}, "a": {"x": 1}, "c": {"x": 5}}


@pytest.mark.parametrize("text", [".nan", "a: [.inf]", "a: -.inf", "1e999"])
def test_numbers_that_are_not_finite_are_refused(text: str):
    assert "no finite number" in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "\tx",
        b"\xff\xfe",
        "a: \x07",
        "!!python/object/apply:os.system ['true']",
        "a: !thing 1",
        "a: *nowhere",
        "? [1]\n: 2",
        "a: 1\n---\nb: 2",
        "[" * 5000,
        "9" * 5000,
        "2001-99-99",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_is_not_plain_yaml_is_one_line(text: str | bytes):
    refused(text)


@pytest.mark.parametrize("text", [r'"\ud800\udc00": 1', r'a: ["x\udfff"]'])
def test_half_a_character_is_refused_with_its_line(text: str):
    with pytest.raises(RecipeError, match=r"r\.yaml line 2: .* holds half a character; mend it"):
        read_yaml(f"# recipe\n{text}".encode(), "r.yaml")


def test_aliases_that_multiply_are_refused_before_they_are_walked():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "values" in refused("\n".join(lines))
    assert "values" in refused("a: &a [*a]")


def test_an_alias_used_twice_is_no_bomb():
    assert read_yaml(b"a: &a [1]\nb: *a\nc: *a", "r") == {"a": [1], "b": [1], "c": [1]}


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(
    plain
    | st.sampled_from(
        ["1e-4", "1e5", "no", "0x1", "1:30", "~", "a\n\nb ", "\n\n", {"\x85": "\u2028"}]
    )
)
def test_what_is_written_reads_as_the_same(tree: object):
    assert read_yaml(write_yaml(tree).encode(), "r") == tree


def test_short_forms_are_written_out():
    short = {
        "base": "tiny",
        "data": "a/b.jsonl.gz",
        "rope": "ntk",
        "strategy": "contiguous",
        "key_bias": "gap",
        "trainer": None,
    }
    assert spelled_out(short) == {
        "base": {"path": "tiny"},
        "data": [{"path": "a/b.jsonl.gz", "name": "b"}],
        "rope": {"type": "ntk"},
        "strategy": {"name": "contiguous"},
        "key_bias": {"name": "gap"},
        "trainer": {},
    }
    assert spelled_out(spelled_out(short)) == spelled_out(short)


def test_none_is_said_in_two_ways():
    for none in ("none", None):
        found = spelled_out({"key_bias": none, "rope": none})
        assert found == {"key_bias": None, "rope": {"type": "none"}}


def test_rope_parameters_need_no_type():
    found = spelled_out({"rope": {"parameters": {"rope_type": "yarn"}}})
    assert found == {"rope": {"type": "parameters", "parameters": {"rope_type": "yarn"}}}


def test_short_forms_of_methods_and_sources():
    found = spelled_out(
        {
            "methods": {"a": {"strategy": "pose"}, "b": None},
            "data": ["x", {"path": "y", "name": "z"}],
        }
    )
    assert found["methods"] == {"a": {"strategy": {"name": "pose"}}, "b": {}}
    assert [source["name"] for source in found["data"]] == ["x", "z"]


def test_a_method_changes_keys_of_a_mapping_unless_its_own_says_what_it_is():
    own = {
        "strategy": {"name": "skipalign", "max_position": 64, "cuts_within": 6},
        "trainer": {"max_steps": 300, "seed": 1},
        "train": True,
    }
    assert merged(own, {"strategy": {"cuts_within": 2}})["strategy"] == {
        "name": "skipalign",
        "max_position": 64,
        "cuts_within": 2,
    }
    alone = {"name": "skipalign", "max_position": 8}
    assert merged(own, {"strategy": alone})["strategy"] == alone
    assert merged(own, {"trainer": {"max_steps": 5}})["trainer"] == {"max_steps": 5, "seed": 1}
    assert merged(own, {"train": False, "strategy": None})["strategy"] is None
    assert own["trainer"] == {"max_steps": 300, "seed": 1}


def test_what_every_method_replaces_is_found():
    own = {"strategy": {"name": "pose"}, "trainer": {"max_steps": 3, "warmup_steps": 1}}
    some = [{"strategy": {"name": "a"}}, {"strategy": {"max_position": 3}}]
    assert unused(own, some) is None
    assert unused(own, [{"strategy": {"name": "a"}}, {"strategy": None}]) == "strategy"
    steps = [{"trainer": {"max_steps": 1}}, {"trainer": {"max_steps": 2}}]
    assert unused(own, steps) == "trainer.max_steps"
    assert unused(own, [*steps, {}]) is None


def test_overrides_reach_into_mappings_and_lists():
    tree = {"trainer": {"a": 1}, "data": [{"path": "x"}, {"path": "y"}]}
    assert overridden(tree, "trainer.b=1e-4")["trainer"] == {"a": 1, "b": 1e-4}
    assert overridden(tree, "data.1.weight=2")["data"] == [
        {"path": "x"},
        {"path": "y", "weight": 2},
    ]
    assert overridden(tree, "new.deep.key=[1, a]")["new"] == {"deep": {"key": [1, "a"]}}
    assert overridden(tree, "needle=The {key} is {value}.")["needle"] == "The {key} is {value}."
    assert overridden(tree, "x=a=b")["x"] == "a=b"
    methods = {"methods": {"p0.5": {"a": 1}, "p0": {}}}
    assert overridden(methods, "methods.p0.5.a=2")["methods"]["p0.5"] == {"a": 2}
    assert overridden(methods, "methods.p0.6.a=2")["methods"]["p0"] == {"6": {"a": 2}}
    assert overridden(tree, "grid.a.b=[1]")["grid"] == {"a.b": [1]}
    assert overridden(tree, "grid={a.b: [1]}")["grid"] == {"a.b": [1]}
    assert tree == {"trainer": {"a": 1}, "data": [{"path": "x"}, {"path": "y"}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("a..b=1", "KEY=VALUE"),
        ("data.2.weight=1", "0 to 1"),
        ("data.x.weight=1", "0 to 1"),
        ("name.x=1", "no keys"),
        ("a=[1", "override 'a=[1'"),
    ],
)
def test_overrides_that_lead_nowhere_are_refused(override: str, message: str):
    with pytest.raises(RecipeError, match="override") as found:
        overridden({"data": [{}, {}], "name": "n"}, override)
    assert message in str(found.value)


def test_text_that_begins_like_a_mapping_is_told_to_be_quoted():
    with pytest.raises(RecipeError, match=r"quote it twice: needle='\"\{key\} came\.\"'"):
        overridden({}, "needle={key} came.")
    assert overridden({}, 'needle="{key} came."') == {"needle": "{key} came."}
