"""short_check.py: every packaged item can be answered, and a rule takes no wrong answer."""

import json
from collections import Counter

import pytest

from fixtures_eval import tiny_llama
from fixtures_suites import Teller, tokenizer
from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.short_check import (
    RULES,
    ShortCheckSettings,
    evaluate_short_check,
    is_right,
    read_items,
)
from skipalign.files import read_json
from skipalign.transformers_engine import TransformersGenerator

ITEMS = list(read_items(ShortCheckSettings()))


def perfect(item) -> str:
    """Write an item's target as a good model would."""
    target = item["target"]
    if item["rule"] == "json":
        return json.dumps(target)
    if item["rule"] == "lines":
        return "\n".join(target)
    return ", ".join(target) if isinstance(target, list) else str(target)


def asked(text: str) -> str:
    return text.partition("<|user|>\n")[2].partition("<|end|>")[0].strip()


def test_there_are_144_items_of_twelve_kinds_and_all_rules():
    assert len(ITEMS) == len({item["id"] for item in ITEMS}) == 144
    assert set(Counter(item["kind"] for item in ITEMS).values()) == {12}
    assert {item["rule"] for item in ITEMS} == set(RULES)
    assert len({item["prompt"] for item in ITEMS}) == 144


def test_perfect_answers_score_1_and_those_of_another_item_do_not(tmp_path):
    answers = {item["prompt"]: perfect(item) for item in ITEMS}
    teller = Teller(lambda text: answers[asked(text)])
    document = evaluate_short_check(teller, tokenizer(), ShortCheckSettings(), tmp_path)
    assert document == read_json(tmp_path / "short_check.json")
    assert [cell["mean"] for cell in document["cells"]] == [1.0] * 12
    found = document["summary"]["all"]
    assert (found["correct"], found["n"], found["high"]) == (144, 144, 1.0)
    assert 0.97 < found["low"] < 0.98, "Wilson"
    shifted = [perfect(item) for item in ITEMS[1:] + ITEMS[:1]]
    wrong = [is_right(said, item) for said, item in zip(shifted, ITEMS, strict=True)]
    assert sum(wrong) < 20, "two neighbours may well have one answer, such as yes"
    assert not any(is_right("", item) for item in ITEMS)
    choices = [item for item in ITEMS if item["rule"] == "choice"]
    assert not any(is_right(" or ".join(item["options"]), item) for item in choices)


@pytest.mark.parametrize(
    ("rule", "answer", "target", "right"),
    [
        ("exact", "“Do NOT”", "Do NOT", True),
        ("exact", "do not", "Do NOT", False),
        ("exact", "Sure! Do NOT", "Do NOT", False),
        ("said", "The cat sleeps.", "the cat sleeps", True),
        ("said", "the cat", "the cat sleeps", False),
        ("number", "7 + 5 = 12.", 12, True),
        ("number", "1,012", 1012, True),
        ("number", "12 or 13", 12, False),
        ("number", "twelve", 12, False),
        ("list", "- Fig\n- date", ["fig", "date"], False),
        ("list", "Fig, date.", ["fig", "date"], True),
        ("list", "date, fig", ["fig", "date"], False),
        ("lines", "* soap\n\n* brush\n", ["* soap", "* brush"], True),
        ("lines", "* soap, * brush", ["* soap", "* brush"], False),
        ("json", '```json\n{"age": 31}\n```', {"age": 31}, True),
        ("json", "age: 31", {"age": 31}, False),
        ("exact", "<think>Do NOT, or not?</think>\nDo NOT", "Do NOT", True),
        ("exact", "<think>\nDo NOT", "Do NOT", False),
    ],
)
def test_a_rule_takes_what_was_asked_for_and_nothing_else(rule, answer, target, right):
    assert is_right(answer, {"rule": rule, "target": target}) is right


def test_a_choice_is_one_option_and_words_are_counted():
    choice = {"rule": "choice", "target": "no", "options": ["yes", "no"]}
    answers = ("No.", "not at all", "no, or yes", "yes")
    assert [is_right(said, choice) for said in answers] == [True, False, False, False]
    words = {"rule": "words", "target": "x", "count": 2, "initial": "b"}
    answers = ("Bread boat", "bread", "bread sun", "bread, boat")
    assert [is_right(said, words) for said in answers] == [True, False, False, False]


def test_a_model_that_learnt_nothing_ends_with_a_score_near_0(tmp_path):
    tok = tokenizer()
    generator = TransformersGenerator(tiny_llama(len(tok)), tok)
    settings = ShortCheckSettings(kinds=("copy", "arithmetic"), max_new_tokens=4)
    document = evaluate_short_check(generator, tok, settings, tmp_path)
    assert {cell["name"]: cell["n"] for cell in document["cells"]} == {"copy": 12, "arithmetic": 12}
    assert document["summary"]["all"]["mean"] < 0.1


def test_ones_own_items_are_asked_and_broken_ones_named(tmp_path):
    path = tmp_path / "own.jsonl"
    item = {"id": "a", "kind": "own", "prompt": "Say x.", "rule": "exact", "target": "x"}
    path.write_text(json.dumps(item) + "\n")
    settings = ShortCheckSettings(data=str(path))
    document = evaluate_short_check(Teller(lambda _: "x"), tokenizer(), settings, tmp_path / "out")
    assert document["summary"]["all"]["correct"] == 1
    with pytest.raises(DataError, match="no item is of the kind 'sort'; it has own"):
        list(read_items(ShortCheckSettings(data=str(path), kinds=("sort",))))
    for change, message in (
        ({"rule": "magic"}, "rule is 'magic'; known: exact"),
        ({"rule": "choice"}, "has no 'options'"),
        ({"target": None}, "has no 'target'"),
    ):
        path.write_text(json.dumps({**item, **change}) + "\n")
        with pytest.raises(DataError, match=message):
            list(read_items(settings))
    with pytest.raises(RecipeError, match="at least 1 token"):
        ShortCheckSettings(max_new_tokens=0)
