"""longbench_v2.py: the published prompt, the published way to read a letter, scores by class."""

import json
from dataclasses import replace

import pytest

from fixtures_suites import Teller, tokenizer
from made_progress import Telling
from skipalign.errors import DataError
from skipalign.evaluation.longbench_v2 import (
    LongBenchV2Settings,
    evaluate_longbench_v2,
    extracted,
    read_samples,
)
from skipalign.files import read_json


def question(number, length="short", difficulty="easy"):
    return {
        "_id": f"id{number}",
        "domain": "Single-Document QA" if number % 2 else "Code",
        "sub_domain": "Legal",
        "difficulty": difficulty,
        "length": length,
        "question": f"  Which of the four is number {number}? ",
        **{f"choice_{letter}": f" option {letter} " for letter in "ABCD"},
        "answer": "ABCD"[number % 4],
        "context": f"  A text about {number} $Q$. \n",
    }


@pytest.fixture
def settings(tmp_path):
    lengths = ["short", "medium", "short", "long", "medium", "short"]
    rows = [question(n, length, "hard" if n > 2 else "easy") for n, length in enumerate(lengths)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return LongBenchV2Settings(data=str(tmp_path))


def test_the_prompt_is_the_published_one(settings, tmp_path):
    first, *_ = read_samples(settings, tmp_path / "data.json")
    assert first.id == "id0"
    assert first.max_new_tokens == 128
    head, _, tail = first.prompt.partition("\n\n<text>\n")
    assert head == "Please read the following text and answer the question below."
    assert tail.startswith("A text about 0 Which of the four is number 0?.\n</text>\n\n")
    assert tail.endswith(
        "What is the correct answer to this question: Which of the four is number 0?\n"
        "Choices:\n(A) option A\n(B) option B\n(C) option C\n(D) option D\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("So: The **correct answer** is **(C)**", "C"),
        ("The correct answer is D", "D"),
        ("The correct answer is A, no, The correct answer is (B)", "B"),  # brackets come first
        ("the correct answer is (B)", None),
        ("B", None),
        ("The correct answer is (E)", None),
        ("", None),
    ],
)
def test_a_letter_is_read_as_published(answer, letter):
    assert extracted(answer) == letter


def test_scores_by_length_difficulty_and_domain(settings, tmp_path):
    teller = Teller(lambda text: "B" if "number 5" in text else "The correct answer is (B)")
    out = tmp_path / "out"
    document = evaluate_longbench_v2(teller, tokenizer(), settings, out)
    assert document == read_json(out / "longbench_v2.json")
    cells = {cell["name"]: (cell["correct"], cell["n"]) for cell in document["cells"]}
    assert cells == {"short": (0, 3), "medium": (1, 2), "long": (0, 1)}
    assert list(cells) == ["short", "medium", "long"]
    found = {
        name: (e["correct"], e["n"]) for name, e in document["summary"].items() if "_" not in name
    }
    assert found == {
        "all": (1, 6),
        "easy": (1, 3),
        "hard": (0, 3),
        "Code": (0, 3),
        "Single-Document QA": (1, 3),
    }
    assert document["summary"]["num_without_letter"] == 1
    assert document["summary"]["num_samples"] == 6
    assert teller.limits == [128] * 6
    assert (out / "longbench_v2.csv").read_text().splitlines()[0].startswith("name,n,correct")
    from matplotlib.image import imread

    assert min(imread(out / "longbench_v2.png").shape[:2]) > 200
    again, progress = Teller(lambda _: "never asked"), Telling()
    assert evaluate_longbench_v2(again, tokenizer(), settings, out, progress) == document
    assert again.prompts == []
    assert [(each.total, each.before, each.done) for each in progress.stages] == [(6, 6, 0)]


def test_limit_takes_the_first_ones(settings, tmp_path):
    few = replace(settings, limit=2)
    progress = Telling()
    document = evaluate_longbench_v2(Teller(str), tokenizer(), few, tmp_path / "out", progress)
    assert document["summary"]["num_samples"] == 2
    assert [(each.total, each.done) for each in progress.stages] == [(2, 2)]


def test_files_that_are_not_the_published_ones(settings, tmp_path):
    (tmp_path / "data.json").rename(tmp_path / "one.json")
    file = replace(settings, data=str(tmp_path / "one.json"))
    evaluate_longbench_v2(Teller(str), tokenizer(), file, tmp_path / "out")
    (tmp_path / "two.jsonl").write_text('{"_id": 1}\n')
    with pytest.raises(DataError, match=r"holds 2 \.json, \.jsonl or \.parquet files"):
        evaluate_longbench_v2(Teller(str), tokenizer(), settings, tmp_path / "other")
    (tmp_path / "one.json").unlink()
    with pytest.raises(DataError, match=r"two\.jsonl row 1: has no 'context', only _id"):
        evaluate_longbench_v2(Teller(str), tokenizer(), settings, tmp_path / "other")
