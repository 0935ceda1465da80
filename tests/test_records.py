"""records.py: what is drawn, how much of it, and what cannot be drawn."""

from dataclasses import replace

import numpy as np
import pytest

from skipalign.errors import RecipeError
from skipalign.evaluation.records import CITIES, CITIES_ZH, RetrievalSettings

FIRST = ("Ada", "Ben", "Cora", "Dan", "Eve")
LAST = ("Fox", "Gray", "Hale", "Irwin")
SETTINGS = RetrievalSettings(needle="{key} {value} came.", question="Who is {key}?", keys=FIRST)


def draw(settings, length=1024, seed=0):
    return settings.draw(np.random.default_rng(seed), length)


def pair(text):
    """Return (key, value) of a needle's text."""
    return text.removesuffix(" came.").rsplit(" ", 1)


def test_one_needle_first_then_distractors_all_unlike():
    hidden = draw(replace(SETTINGS, distractors=4))
    pairs = [pair(text) for text in hidden.texts]
    assert sorted(key for key, _ in pairs) == sorted(FIRST)
    assert len({value for _, value in pairs}) == 5
    assert all(len(value) == 7 for _, value in pairs)
    assert hidden.question == f"Who is {pairs[0][0]}?"
    assert (hidden.key, hidden.values) == (pairs[0][0], (pairs[0][1],))
    assert hidden.other_keys == {key for key, _ in pairs[1:]}
    assert hidden.other_values == {value for _, value in pairs[1:]}
    assert len({draw(SETTINGS, seed=seed).key for seed in range(40)}) == 5


def test_a_language_brings_its_own_texts_where_none_are_given():
    settings = RetrievalSettings(language="zh", haystack="book.txt", num_needles=2)
    assert settings.needle == "{key}的秘密数字是{value}。"
    hidden = draw(settings)
    first, second = hidden.key.split("和")
    assert {first, second} < set(CITIES_ZH)
    assert hidden.question == f"{hidden.key}的秘密数字是多少？只回答这个数字。"
    assert hidden.texts[0] == f"{first}的秘密数字是{hidden.values[0]}。"
    own = replace(settings, needle="{key}：{value}！", keys=("甲", "乙", "丙"))
    assert (own.needle, own.question) == ("{key}：{value}！", settings.question)
    assert set(draw(own).key.split("和")) < {"甲", "乙", "丙"}
    assert len(set(CITIES_ZH)) == len(CITIES) == len(CITIES_ZH)
    with pytest.raises(RecipeError, match=r"language is zh and haystack is None: the built-in"):
        RetrievalSettings(language="zh")
    with pytest.raises(RecipeError, match=r"language is 'fr'; it must be en or zh"):
        RetrievalSettings(language="fr", haystack="book.txt")


def test_constant_density_counts_the_needle():
    settings = RetrievalSettings(tokens_per_record=25.6)
    assert [settings.num_records(w * 128) for w in (1, 8, 64)] == [5, 40, 320]
    assert settings.num_records(10) == 1
    keys = tuple(f"key{number}" for number in range(320))
    dense = replace(settings, keys=keys)
    assert len(draw(dense, 128).texts) == 5
    assert len(set(draw(dense, 8192).texts)) == 320
    dense.refuse_too_few_names(8192)
    with pytest.raises(RecipeError, match=r"320 keys for 320 distractors .* in 8218 tokens"):
        dense.refuse_too_few_names(8218)


def test_names_of_several_words_are_one_of_each_list():
    settings = replace(SETTINGS, keys=(FIRST, LAST), values=(("A", "B"), ("x", "y")), distractors=3)
    seen = set()
    for seed in range(100):
        pairs = [text.removesuffix(" came.").split(" ") for text in draw(settings, seed=seed).texts]
        assert len({(first, last) for first, last, *_ in pairs}) == 4
        assert {(*rest,) for _, _, *rest in pairs} == {
            (first, last) for first in "AB" for last in "xy"
        }
        seen |= {(first, last) for first, last, *_ in pairs}
    assert seen == {(first, last) for first in FIRST for last in LAST}


def test_many_combinations_cost_no_more_than_few():
    thousand = tuple(f"n{number}" for number in range(1000))
    settings = RetrievalSettings(keys=(thousand, thousand, thousand), distractors=300)
    settings.refuse_too_few_names(100)
    assert len({text.split(" is ")[0] for text in draw(settings).texts}) == 301


def test_near_keys_share_all_words_but_one():
    settings = replace(SETTINGS, keys=(FIRST, LAST, ("I", "II")), near_keys=True, distractors=8)
    shared = np.zeros(3)
    for seed in range(50):
        first, *others = [text.split(" ")[:3] for text in draw(settings, seed=seed).texts]
        assert len({tuple(other) for other in others}) == 8  # 4 + 3 + 1: all there are
        for other in others:
            unlike = [a != b for a, b in zip(first, other, strict=True)]
            assert sum(unlike) == 1
            shared += unlike
    assert shared.tolist() == [200, 150, 50]
    with pytest.raises(RecipeError, match="9 keys for 9 distractors"):
        replace(settings, distractors=9).refuse_too_few_names(1024)


def test_repeated_distractors_never_take_a_needles_key_or_value():
    settings = replace(SETTINGS, values=LAST, distractors=30, distractors_repeat=True)
    settings.refuse_too_few_names(1024)
    seen = set()
    for seed in range(30):
        first, *others = map(pair, draw(settings, seed=seed).texts)
        assert {key for key, _ in others} <= set(FIRST) - {first[0]}
        assert {value for _, value in others} <= set(LAST) - {first[1]}
        seen |= {tuple(pair) for pair in others}
    assert len(seen) == len(FIRST) * len(LAST)
    with pytest.raises(RecipeError, match="1 values for 30 distractors"):
        replace(settings, values=("Fox",)).refuse_too_few_names(1024)


def test_several_needles_ask_for_all_their_values():
    settings = replace(SETTINGS, num_needles=3, distractors=1, key_joiner=", ")
    hidden = draw(settings)
    pairs = [pair(text) for text in hidden.texts]
    keys, values = zip(*pairs, strict=True)
    assert len(set(keys)) == len(set(values)) == 4
    assert hidden.values == values[:3]
    assert hidden.question == f"Who is {keys[0]}, {keys[1]}, {keys[2]}?"


def test_needles_may_share_one_key():
    settings = replace(SETTINGS, num_needles=3, distractors=2, same_key=True)
    hidden = draw(settings)
    pairs = [pair(text) for text in hidden.texts]
    assert [key for key, _ in pairs[:3]] == [hidden.key] * 3
    assert hidden.key not in [key for key, _ in pairs[3:]]
    assert hidden.values == tuple(value for _, value in pairs[:3])
    assert len({value for _, value in pairs}) == 5
    assert hidden.question == f"Who is {hidden.key}?"


@pytest.mark.parametrize("repeat", [False, True])
def test_a_link_makes_the_answer_need_two_sentences(repeat):
    names = tuple(f"N{number}" for number in range(8))
    settings = replace(
        SETTINGS,
        keys=names,
        link="{key} met {other}.",
        question="Who did {key} meet?",
        distractors=3,
        distractors_repeat=repeat,
    )
    settings.refuse_too_few_names(1024)
    for seed in range(20):
        hidden = draw(settings, seed=seed)
        came = dict(pair(text) for text in hidden.texts[:4])
        met = dict(text.removesuffix(".").split(" met ") for text in hidden.texts[4:])
        (value,) = hidden.values
        assert came[met[hidden.key]] == value
        assert next(iter(came)) == met[hidden.key]  # the needle is the sentence with the value
        used = [name for text in hidden.texts for name in text.replace(".", "").split()]
        assert used.count(hidden.key) == 1
        assert used.count(met[hidden.key]) == 2
        if not repeat:
            assert len(met) == len(came) == 4
            assert not set(met) & set(came)
            assert set(met.values()) == set(came)
    with pytest.raises(RecipeError, match="8 keys for 4 distractors"):
        replace(settings, distractors=4, distractors_repeat=False).refuse_too_few_names(1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link": "{key} met somebody."}, r"link is .* must hold \{other\}"),
        ({"tokens_per_record": 20, "distractors": 2}, "give one of them"),
        ({"tokens_per_record": 0.5}, "at least 1"),
        ({"num_needles": 0}, "num_needles is 0; at least 1 is required"),
        ({"same_key": True}, "num_needles is 1; at least 2 is required with same_key"),
        ({"near_keys": True}, "near_keys is true and the keys are single words"),
        ({"keys": (("Mary Ann", "Mary"), ("Fox",))}, "'Mary Ann' is not one word"),
        ({"values": (("a", "b"), ("c d",))}, "values are combined .* 'c d' is not one word"),
    ],
)
def test_settings_that_contradict_themselves(change, message):
    with pytest.raises(RecipeError, match=message):
        replace(SETTINGS, **change)
