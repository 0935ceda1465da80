"""infinitebench.py: each task's published prompt and rule."""

import json
from dataclasses import replace

import pytest

from fixtures_suites import Teller, tokenizer
from made_progress import Telling
from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.infinitebench import (
    SCORES,
    InfiniteBenchSettings,
    evaluate_infinitebench,
    find_files,
    read_samples,
)
from skipalign.files import read_json

OPTIONS = ["first", "second", "third", "fourth"]
ROWS = {
    "passkey": {"input": "What is the pass key?", "answer": ["12345"], "options": []},
    "number_string": {"input": "What is the sequence?", "answer": ["1122"], "options": []},
    "kv_retrieval": {"input": 'Key: "k"', "answer": ["v-1"], "options": []},
    "longdialogue_qa_eng": {"input": "Who?", "answer": ["EMMA"], "options": []},
    "longbook_sum_eng": {"input": "", "answer": ["A man walks."], "options": []},
    "longbook_choice_eng": {"input": "Which?", "answer": ["third"], "options": OPTIONS},
    "longbook_qa_eng": {"input": "Who?", "answer": ["Mr Darcy", "Darcy"], "options": []},
    "longbook_qa_chn": {"input": "谁？", "answer": ["王小明"], "options": []},
    "math_find": {
        "input": "You should answer with one number. The second largest number of the list is:",
        "answer": [7],
        "options": [],
    },
    "math_calc": {"input": "", "answer": [1, 3, 2], "options": []},
    "code_run": {
        "input": "Please give me the exact number of the return value of func_1(-3).",
        "answer": [-41],
        "options": [],
    },
    "code_debug": {"input": "Which?", "answer": ["second"], "options": OPTIONS},
}
ASKED = {
    "passkey": ("…text…\n\nWhat is the pass key?\n\nThe pass key is", 6),
    "number_string": ("…text…\n\nWhat is the sequence?\n\nThe sequence of digits is", 12),
    "kv_retrieval": ('JSON object below.\n\n…text…\n\nKey: "k"', 50),
    "longdialogue_qa_eng": (
        "…text…\n\nThe name that has been replaced with $$MASK$$ is likely",
        40,
    ),
    "longbook_sum_eng": ("Summarize the book below.\n\n…text…\n\nSummary:", 1200),
    "longbook_choice_eng": (
        "…text…\n\nQuestion: Which?\nA. first\nB. second\nC. third\nD. fourth\n\n"
        "The letter of the correct answer is",
        40,
    ),
    "longbook_qa_eng": ("answer.\n\n…text…\n\nQuestion: Who?\nAnswer:", 40),
    "longbook_qa_chn": ("阅读以下书籍然后回答问题。\n\n…text…\n\n问题：谁？\n答案：", 40),
    "math_find": (
        "What is the second largest number in the following list?\n\n…text…\n\nYou should answer "
        "with one number. The second largest number of the list is:",
        3,
    ),
    "math_calc": ("Values: [8, 5, 7, 3]\n\nExpression: …text…\nValues:", 30000),
    "code_run": (
        "There is a function called func_1 in the following Python code.\n\n…text…\n\nPlease "
        "compute the exact value of func_1(-3). The value of func_1(-3) is",
        5,
    ),
    "code_debug": (
        "…text…\n\nOptions:\nA. first\nB. second\nC. third\nD. fourth\n\nThe correct option is:",
        5,
    ),
}


@pytest.fixture
def settings(tmp_path):
    for task, row in ROWS.items():
        lines = [json.dumps({"id": n, "context": "…text…", **row}) for n in range(2)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
    return InfiniteBenchSettings(data=str(tmp_path))


@pytest.mark.parametrize("task", SCORES)
def test_prompts_are_those_that_open_models_were_published_with(settings, task):
    one = replace(settings, tasks=(task,))
    first, second = read_samples(one, find_files(one))
    prompt, most = ASKED[task]
    assert first.prompt.endswith(prompt)
    assert first.max_new_tokens == most
    assert (first.id, second.id) == (f"{task}-0", f"{task}-1")
    targets = {"longbook_choice_eng": ["third", "C"], "code_debug": ["second", "B"]}
    assert first.target == targets.get(task, ROWS[task]["answer"])


def test_chat_takes_the_prompts_of_gpt_4_the_template_and_longer_answers(settings, tmp_path):
    chat = replace(settings, chat=True, tasks=("passkey", "longbook_sum_eng"))
    teller = Teller(lambda _: "12345")
    evaluate_infinitebench(teller, tokenizer(), chat, tmp_path / "out")
    assert teller.prompts[0].startswith("<s><|user|>\nThere is an important info")
    assert teller.prompts[0].endswith("What is the pass key?<|end|>\n<|assistant|>\n")
    assert teller.limits == [1024, 1024, 1200, 1200]
    plain = Teller(lambda _: "12345")
    evaluate_infinitebench(plain, tokenizer(), replace(chat, chat=False), tmp_path / "plain")
    assert plain.prompts[0].startswith("There is an important info")
    assert plain.prompts[0].endswith("The pass key is")


@pytest.mark.parametrize(
    ("task", "answer", "target", "score"),
    [
        ("passkey", " 12345.", ["12345"], 1),
        ("passkey", "It is 1 12345", ["12345"], 0),  # the first number counts
        ("passkey", "none", ["12345"], 0),
        ("number_string", "1122 and 5", "1122", 1),
        ("kv_retrieval", '{"k": "v-1"}', ["v-1"], 1),
        ("kv_retrieval", "v-12", ["v-1"], 0),
        ("longdialogue_qa_eng", "It is Emma!", ["EMMA"], 1),
        ("longdialogue_qa_eng", "Emmanuel", ["EMMA"], 0),
        ("longbook_choice_eng", "C", ["third", "C"], 1),
        ("longbook_choice_eng", " C. third", ["third", "C"], 1),
        ("longbook_choice_eng", "B, not C", ["third", "C"], 0),
        ("longbook_choice_eng", "third", ["third", "C"], 1),
        ("longbook_choice_eng", "the answer is: C", ["third", "C"], 1),
        ("longbook_choice_eng", "the answer is third", ["third", "C"], 1),
        ("longbook_choice_eng", "the answer is", ["third", "C"], 0),
        ("longbook_choice_eng", "the answer is D, or C", ["third", "C"], 0),
        ("longbook_choice_eng", "maybe B or C", ["third", "C"], 0),  # the first letter counts
        ("longbook_choice_eng", "maybe C", ["third", "C"], 1),
        ("longbook_choice_eng", "", ["third", "C"], 0),
        ("longbook_choice_eng", "maybe C, the answer is", ["third", "C"], 0),
        ("code_debug", "B. second", ["second", "B"], 1),
        ("code_debug", "The answer is: B", ["second", "B"], 1),
        ("code_debug", "the correct option is: `second`", ["second", "B"], 1),
        ("code_debug", "the correct option is: second", ["second", "B"], 1),
        ("code_debug", "The answer is: A, not B", ["second", "B"], 0),
        ("code_debug", "B", ["second", "B"], 0),
        ("math_find", "The 7", [7], 1),
        ("math_find", "7.5", [7], 0),
        ("math_find", "2.50", [2.5], 1),
        ("math_find", "70", [7], 0),
        ("math_calc", "[1, 3, 2]", [1, 3, 2], 1),
        ("math_calc", "[1, 3, 9, 2]", [[1, 3, 2]], 2 / 3),
        ("math_calc", "1", [1, 3, 2], 1 / 3),
        ("math_calc", "9 1 3 2", [1, 3, 2], 0),
        ("code_run", "The value is -41.", [-41], 1),
        ("code_run", "-41 or 3", [-41], 0),
        ("code_run", "", [-41], 0),
        ("code_run", "five", [-41], 0),
        ("longbook_qa_eng", "The Mr. Darcy", ["Mr Darcy", "Darcy"], 1),
        ("longbook_qa_eng", "Darcy of Pemberley", ["Mr Darcy", "Darcy"], 0.5),
        ("longbook_qa_eng", "nobody", ["Mr Darcy"], 0),
        ("longbook_qa_chn", "王 小明。", ["王小明"], 1),
        ("longbook_qa_chn", "小明", ["王小明"], 0.8),
        ("longbook_sum_eng", "a man\nwalks", ["A man walks."], 1),
        ("longbook_sum_eng", "A dog", ["A man walks."], 0.4),
    ],
)
def test_answers_are_scored_as_published(task, answer, target, score):
    assert SCORES[task](answer, target) == pytest.approx(score)


def test_means_by_task_and_over_tasks(settings, tmp_path):
    some = replace(settings, tasks=("passkey", "longbook_qa_eng"), limit=1)
    teller = Teller(lambda text: "12345" if "pass key" in text else "Darcy of Pemberley")
    progress = Telling()
    document = evaluate_infinitebench(teller, tokenizer(), some, tmp_path / "out", progress)
    assert [(each.total, each.done) for each in progress.stages] == [(2, 2)]
    assert document == read_json(tmp_path / "out" / "infinitebench.json")
    cells = [(cell["name"], cell["n"], cell["mean"]) for cell in document["cells"]]
    assert cells == [("passkey", 1, 1.0), ("longbook_qa_eng", 1, 0.5)]
    assert document["summary"]["mean_of_tasks"] == 0.75
    assert document["summary"]["num_tasks"] == 2


def test_files_of_all_tasks_or_of_those_asked_for(settings, tmp_path):
    assert list(find_files(settings)) == list(SCORES)
    (tmp_path / "passkey.jsonl").unlink()
    assert "passkey" not in find_files(settings)
    with pytest.raises(DataError, match=r"has no passkey\.jsonl"):
        find_files(replace(settings, tasks=("passkey", "code_run")))
    with pytest.raises(DataError, match=r"has no passkey\.jsonl; give the folder"):
        find_files(replace(settings, data=str(tmp_path / "nowhere")))
    with pytest.raises(RecipeError, match=r"'passkeys' is none of passkey"):
        replace(settings, tasks=("passkeys",))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("code_run", {"input": "no call"}, r"code_run\.jsonl row 1: input 'no call' does not hold"),
        (
            "longbook_choice_eng",
            {"answer": ["fifth"]},
            r"answer \['fifth'\] is none of the options",
        ),
        ("passkey", {"context": None}, r"passkey\.jsonl row 1: has no 'context'"),
    ],
)
def test_rows_that_are_not_as_published(settings, tmp_path, task, change, message):
    row = {"id": 0, "context": "…", **ROWS[task], **change}
    (tmp_path / f"{task}.jsonl").write_text(json.dumps(row) + "\n")
    one = replace(settings, tasks=(task,))
    with pytest.raises(DataError, match=message):
        list(read_samples(one, find_files(one)))
