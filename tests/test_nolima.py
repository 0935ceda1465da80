"""nolima.py: needles where the published code puts them, base score, effective length."""

import json
import re
from dataclasses import replace

import pytest

from fixtures_eval import prose
from fixtures_suites import Teller, tokenizer
from made_progress import Telling
from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.nolima import (
    Book,
    NolimaSettings,
    evaluate_nolima,
    read_questions,
    read_samples,
)
from skipalign.files import read_json
from skipalign.tokens import DataTokenizer

NEEDLES = [
    {
        "id": "0401Inv",
        "reasoning_type": "world",
        "system_prompt": "",
        "task_template": "Q first: {question}\n\n{haystack}",
        "needle": "Actually, {CHAR} lives next to {1}.",
        "questions": {"onehop": "Who was in {2}?", "twohop": "Who was in {3}?"},
        "character_set": ["Yuki", "Stuart", "Katie"],
        "tests": {
            "T1": {"input_args": ["the Kiasma museum", "Helsinki", "Uusimaa"]},
            "T2": {"input_args": ["the Semperoper", "Dresden", "Saxony"]},
        },
    },
    {
        "id": "0500",
        "system_prompt": "Be brief.",
        "needle": "There is a red door.",
        "questions": {"direct": "Which colour?"},
        "tests": {"T1": {"input_args": [], "gold_answers": ["red", "crimson"]}},
    },
]


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "needlesets").mkdir()
    (tmp_path / "needlesets" / "needle_set.json").write_text(json.dumps(NEEDLES))
    books = tmp_path / "haystack" / "rand_shuffle"
    books.mkdir(parents=True)
    for number in range(2):
        lines = re.split(r"(?<=\.) ", prose(200, seed=number).replace("\n\n", " "))
        (books / f"rand_book_{number}.txt").write_text("\n".join(lines))
    return NolimaSettings(data=str(tmp_path), lengths=(250, 500, 1500), depths=3)


def by_decoding(book_text, needle, length, depth):
    """The rule on token ids: the first token with a break at or after depth, the text around it."""
    ids, decode = tokenizer()(book_text)["input_ids"], tokenizer().decode
    breaks = [0, *(place for place, each in enumerate(ids) if "\n" in decode([each]))]
    border = next(place for place in breaks if place >= depth * (length + 1))
    first = border - round(depth * length)
    before = decode(ids[first : border + 1]).rpartition("\n")[0]
    return f"{before} {needle}\n{decode(ids[border + 1 : first + length])}"


@pytest.mark.parametrize("depth", [0.0, 0.04, 0.5, 0.96, 1.0])
@pytest.mark.parametrize(
    ("length", "text"), [(64, None), (65, "\n".join("abcdefghijk" * 9)), (250, None), (1000, None)]
)
def test_a_needle_stands_where_the_published_code_puts_it(settings, tmp_path, depth, length, text):
    path = tmp_path / "haystack" / "rand_shuffle" / "rand_book_0.txt"
    path.write_text(text or path.read_text())
    book = Book(path, DataTokenizer(tokenizer()))
    expected = by_decoding(path.read_text(), "A needle.", length, depth)
    assert book.with_needle("A needle.", length, depth) == expected
    assert expected.count("A needle.") == 1


def test_questions_are_read_with_their_arguments_and_templates(settings, tmp_path):
    path = tmp_path / "needlesets" / "needle_set.json"
    questions = read_questions(settings, path)
    assert [each.name for each in questions] == [
        *("0401Inv_T1_onehop", "0401Inv_T2_onehop", "0401Inv_T1_twohop", "0401Inv_T2_twohop"),
        "0500_T1_direct",
    ]
    assert questions[3].needle == "Actually, {CHAR} lives next to the Semperoper."
    assert questions[3].question == "Who was in Saxony?"
    assert questions[3].template == "Q first: {question}\n\n{haystack}"
    assert "{haystack}" in questions[4].template
    assert "{question}" in questions[4].template
    own = replace(settings, task_template="{haystack} -- {question}")
    assert {each.template for each in read_questions(own, path)} == {"{haystack} -- {question}"}


def test_samples_cover_the_grid_and_names_are_drawn_alike_at_every_length(settings, tmp_path):
    questions = read_questions(settings, tmp_path / "needlesets" / "needle_set.json")
    texts = sorted((tmp_path / "haystack" / "rand_shuffle").glob("*.txt"))
    books = [Book(path, DataTokenizer(tokenizer())) for path in texts]
    samples = list(read_samples(settings, questions, books))
    assert len({sample.id for sample in samples}) == len(samples) == 3 * 5 * 2 * 3
    names = {}
    for sample in samples:
        labels = sample.labels
        if labels["kind"] == "direct":
            assert sample.target == ["red", "crimson"]
            assert sample.system == "Be brief."
            continue
        assert f"Actually, {sample.target[0]} lives next to" in sample.prompt
        assert "{" not in sample.prompt
        key = labels["depth"], sample.id.split("-")[2]
        names.setdefault(key, set()).add(sample.target[0])
    assert len(names) == 6
    assert all(len(each) == 1 for each in names.values())
    assert len({name for each in names.values() for name in each}) > 1
    other = list(read_samples(replace(settings, seed=7), questions, books))
    assert [one.target for one in other] != [one.target for one in samples]


def test_base_score_and_effective_length(settings, tmp_path):
    """Twohop is answered at 500 tokens alone, onehop up to 500, the last but for some at 500."""

    def say(text):
        num_tokens = len(tokenizer()(text)["input_ids"])
        short, middle = num_tokens < 480, num_tokens < 760
        found = re.search(r"Actually, (\w+) lives|a (red) door", text)
        name = found.group(1) or found.group(2)
        if "Which colour" in text:
            at_the_end = text.index("red door") > 0.6 * len(text)
            return "blue" if at_the_end and middle and not short else f"It is {name}."
        is_onehop = re.search(r"in (Helsinki|Dresden)\?", text)
        return name if (middle if is_onehop else middle and not short) else "Nobody"

    progress = Telling()
    document = evaluate_nolima(Teller(say), tokenizer(), settings, tmp_path / "out", progress)
    assert [each.is_whole for each in progress.stages] == [True]
    assert document == read_json(tmp_path / "out" / "nolima.json")
    summary = document["summary"]
    lengths = {cell["context_length"]: cell["mean"] for cell in document["cells"]}
    assert list(lengths) == [250, 500, 1500]
    assert all(cell["n"] == 5 * 2 * 3 for cell in document["cells"])
    assert summary["base score"]["mean"] == 1
    assert summary["base score"]["n"] == 5  # questions, each at its best length
    assert lengths[250] < 0.85
    assert 0.85 < lengths[500] < 1
    assert lengths[1500] == pytest.approx(1 / 5)
    assert summary["effective_length"] == 500
    assert summary["onehop, 1,500"]["correct"] == 0
    assert summary["direct, 1,500"]["correct"] == 6


def test_without_short_lengths_there_is_no_base_score(settings, tmp_path):
    long = replace(settings, lengths=(1500,), limit=1, depths=1)
    progress = Telling()
    document = evaluate_nolima(Teller(str), tokenizer(), long, tmp_path / "out", progress)
    summary = document["summary"]
    assert [(each.total, each.done) for each in progress.stages] == [(2, 2)]
    assert "base score" not in summary
    assert summary["effective_length"] is None
    assert summary["num_samples"] == 2


def test_what_is_missing_or_too_short_is_named(settings, tmp_path):
    with pytest.raises(DataError, match=r"rand_book_0\.txt: has [\d,]+ tokens .* length of 90,000"):
        evaluate_nolima(
            Teller(str), tokenizer(), replace(settings, lengths=(90000,)), tmp_path / "out"
        )
    with pytest.raises(DataError, match=r"lacks needlesets/other\.json"):
        evaluate_nolima(
            Teller(str), tokenizer(), replace(settings, needle_set="other.json"), tmp_path / "out"
        )
    lacking = [{**NEEDLES[0], "character_set": []}]
    (tmp_path / "needlesets" / "needle_set.json").write_text(json.dumps(lacking))
    with pytest.raises(DataError, match=r"entry 1: has no character_set"):
        evaluate_nolima(Teller(str), tokenizer(), settings, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": ()}, r"lengths are \[\]"),
        ({"lengths": (250, 250)}, r"lengths are \[250, 250\]"),
        ({"depths": 0}, r"depths are 0"),
        ({"task_template": "{haystack}"}, r"it must hold \{question\}"),
    ],
)
def test_settings_that_ask_nothing(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, **change)
