"""babilong.py: files of both published layouts, the published prompt and comparison."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures_suites import Teller, tokenizer
from made_progress import Telling
from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.babilong import (
    BabilongSettings,
    evaluate_babilong,
    find_files,
    is_correct,
    read_samples,
)
from skipalign.evaluation.suites import by_length
from skipalign.files import read_json


def rows(num, filler):
    return [
        {
            "input": f" {filler} Mary went to the kitchen. {filler} ",
            "question": f"Where is Mary? ({number})",
            "target": "kitchen" if number else "garden",
        }
        for number in range(num)
    ]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "babilong"
    for size, filler in (("0k", ""), ("16k", "A book. " * 60), ("4k", "A book. " * 9)):
        (folder / size).mkdir(parents=True)
        for task in ("qa2", "qa10", "qa1"):
            path = folder / size / f"{task}-00000-of-00001.parquet"
            pq.write_table(pa.Table.from_pylist(rows(3, filler)), path)
    return folder


def test_both_layouts_are_found_in_the_order_of_their_sizes(data, tmp_path):
    settings = BabilongSettings(data=str(data))
    expected = [(size, task) for size in ("0k", "4k", "16k") for task in ("qa1", "qa2", "qa10")]
    assert list(find_files(settings)) == expected
    (tmp_path / "json" / "qa3").mkdir(parents=True)
    (tmp_path / "json" / "qa3" / "1M.json").write_text(json.dumps(rows(2, "x")))
    (tmp_path / "json" / "README.md").write_text("qa1 4k")
    (tmp_path / "json" / "qa12").mkdir()
    (tmp_path / "json" / "qa12" / "1k.json").write_text("[]")  # no published prompt here
    other = BabilongSettings(data=str(tmp_path / "json"))
    assert list(find_files(other)) == [("1M", "qa3")]
    some = replace(settings, tasks=("qa10",), sizes=("4k",))
    assert list(find_files(some)) == [("4k", "qa10")]
    with pytest.raises(DataError, match=r"no file is named for a task and a size"):
        find_files(replace(settings, sizes=("64k",)))


def test_the_prompt_is_the_published_one(data):
    settings = BabilongSettings(data=str(data), tasks=("qa1",), sizes=("0k",))
    first, *_ = read_samples(settings, find_files(settings))
    assert first.prompt == (
        "I will give you context with the facts about positions of different persons hidden in "
        "some random text and a question. You need to answer the question based only on the "
        "information from the facts. If a person was in different locations, use the latest "
        "location to answer the question.\n\n"
        "<example>\nCharlie went to the hallway. Judith come back to the kitchen. Charlie "
        "travelled to balcony. Where is Charlie?\nAnswer: The most recent location of Charlie is "
        "balcony.\n</example>\n\n"
        "<example>\nAlan moved to the garage. Charlie went to the beach. Alan went to the shop. "
        "Rouse travelled to balcony. Where is Alan?\nAnswer: The most recent location of Alan is "
        "shop.\n</example>\n\n"
        "Always return your answer in the following format: The most recent location of ’person’ "
        "is ’location’. Do not write anything else after that.\n\n"
        "<context>\nMary went to the kitchen.\n</context>\n\nQuestion: Where is Mary? (0)"
    )
    assert first.max_new_tokens == 20


@pytest.mark.parametrize(
    ("task", "question", "target", "answer", "right"),
    [
        ("qa1", "Where is Mary?", "kitchen", "The most recent location is the Kitchen.", True),
        ("qa1", "Where is Mary?", "kitchen", "kitchen, or the garden", False),
        ("qa1", "Where is Mary?", "kitchen", "kitchen. Not the garden.", True),
        ("qa1", "Where is Mary?", "kitchen", "kitchen<example> garden", True),
        ("qa1", "Where is Mary?", "kitchen", "I do not know", False),
        ("qa1", "Where is Mary?", "kitchen", "No idea. kitchen", False),
        ("qa3", "Where was the apple before the garden?", "office", "the garden, office", True),
        ("qa5", "Who did Mary give the apple to?", "Fred", "Mary gave it to fred", True),
        ("qa7", "How many?", "none", "none", False),  # "none" names "one" too, as published
        ("qa7", "How many?", "two", "two", True),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk and apple", True),
        ("qa8", "What is Mary carrying?", "apple,milk", "milk", False),
        ("qa8", "What is Mary carrying?", "milk", "milk, apple", False),
        ("qa10", "Is Bill in the park?", "maybe", "Maybe.", True),
    ],
)
def test_an_answer_is_compared_as_published(task, question, target, answer, right):
    assert is_correct(task, question, target, answer) is right


def test_accuracy_by_task_and_by_length(data, tmp_path):
    teller = Teller(lambda text: "The kitchen." if "A book." not in text else "The garden.")
    settings = BabilongSettings(data=str(data), tasks=("qa1", "qa2"))
    progress = Telling()
    document = evaluate_babilong(teller, tokenizer(), settings, tmp_path / "out", progress)
    assert [each.is_whole for each in progress.stages] == [True]
    assert document == read_json(tmp_path / "out" / "babilong.json")
    cells = [(cell["name"], cell["size"], cell["correct"], cell["n"]) for cell in document["cells"]]
    assert cells == [
        *(("qa1", "0k", 2, 3), ("qa2", "0k", 2, 3), ("qa1", "4k", 1, 3), ("qa2", "4k", 1, 3)),
        *(("qa1", "16k", 1, 3), ("qa2", "16k", 1, 3)),
    ]
    lengths = by_length(document)
    assert [(row["size"], row["correct"], row["n"]) for row in lengths] == [
        ("0k", 4, 6),
        ("4k", 2, 6),
        ("16k", 2, 6),
    ]
    tokens = [len(ids) for ids in teller.ids]
    means = [round(sum(tokens[start : start + 6]) / 6) for start in (0, 6, 12)]
    assert [row["context_length"] for row in lengths] == means
    assert means == sorted(set(means))
    assert document["cells"][2]["context_length"] == means[1]
    assert set(teller.limits) == {20}


def test_a_task_without_a_prompt_is_refused():
    with pytest.raises(RecipeError, match=r"'qa12' is none of qa1, qa2"):
        BabilongSettings(data="x", tasks=("qa1", "qa12"))
