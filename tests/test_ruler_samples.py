"""ruler_samples.py: every prompt is solved from its text alone, and is the published one."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from fixtures_eval import prose
from skipalign.evaluation.ruler_samples import (
    SUBTASKS,
    Question,
    QuestionFile,
    Sources,
    Trial,
    published,
)

DOCUMENTS = tuple(f"Title {number}\nText of number {number}." for number in range(12))
FILE = QuestionFile(
    questions=(
        Question("Which one?", ("number 3", "three"), (3,), (1, 5, 7)),
        Question("Which two?", ("number 8",), (8, 9)),
    ),
    documents=DOCUMENTS,
)
SOURCES = Sources(seed=5, essay=tuple(prose(60).split()), files={"qa_1": FILE, "qa_2": FILE})
TRIAL = Trial(SOURCES, 2048, 0)
RECORD = re.compile(r"One of the special magic (\w+) for (.+?) is: (\S+)\.(?=\s|$)")
# Kind of the values, records besides the units, keys among them, keys asked for.
NEEDLES = {
    "niah_single_1": ("numbers", 1, 1, 1),
    "niah_single_2": ("numbers", 1, 1, 1),
    "niah_single_3": ("uuids", 1, 1, 1),
    "niah_multikey_1": ("numbers", 4, 4, 1),
    "niah_multikey_2": ("numbers", 1, 1, 1),
    "niah_multikey_3": ("uuids", 1, 1, 1),
    "niah_multivalue": ("numbers", 4, 1, 1),
    "niah_multiquery": ("numbers", 4, 4, 4),
}
KINDS = {"numbers": r"\d{7}", "uuids": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f-]{16}"}


def solved(name, prompt):
    """Return the answers that a prompt's text holds, found without knowing how it was made."""
    if name in NEEDLES:
        asked = re.search(r"magic \w+ for (.+) mentioned in the provided text\?$", prompt)[1]
        keys = re.split(r", (?:and )?", asked)
        return [value for _, key, value in RECORD.findall(prompt) if key in keys]
    if name == "vt":
        text = prompt.rpartition("Memorize and track")[2]
        value = re.search(r"assigned the value (\d+) in", text)[1]
        steps = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text))
        chain = [next(name for name, held in steps.items() if held == value)]
        while following := [name for name, held in steps.items() if held == chain[-1]]:
            chain += following
        return chain
    if name == "cwe":
        text = prompt.rpartition("Below is a numbered list")[2].partition("\nQuestion")[0]
        words = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", text.partition("\n")[2])
        return [word for word, _ in Counter(words).most_common(10)]
    text = prompt.partition("appeared coded words. ")[2].partition("\nQuestion")[0]
    return [word for word, _ in Counter(text.split(" ")).most_common(4) if word != "..."]


@pytest.mark.parametrize("name", [name for name in SUBTASKS if not name.startswith("qa")])
@pytest.mark.parametrize("context_length", [2048, 8192])
def test_every_task_asks_for_what_its_prompt_holds(name, context_length):
    for index in range(3):
        for num_units in (SUBTASKS[name].least, 90, 400):
            trial = Trial(SOURCES, context_length, index)
            puzzle = SUBTASKS[name].puzzle(num_units, trial)
            found = solved(name, puzzle.prompt)
            if name == "fwe":
                assert found == list(puzzle.targets)  # the most frequent first
            else:
                assert sorted(found) == sorted(puzzle.targets)
            assert len(puzzle.targets) == {"vt": 5, "cwe": 10, "fwe": 3}.get(
                name, 4 if name in ("niah_multivalue", "niah_multiquery") else 1
            )


def test_the_thirteen_are_those_published():
    assert list(SUBTASKS) == [*NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2"]
    budgets = [published()[SUBTASKS[name].form]["max_new_tokens"] for name in SUBTASKS]
    assert budgets == [*[128] * 8, 30, 120, 50, 32, 32]


@pytest.mark.parametrize("name", NEEDLES)
def test_needles_are_as_many_and_of_the_kind_published(name):
    values, num, num_keys, num_asked = NEEDLES[name]
    puzzle = SUBTASKS[name].puzzle(50, TRIAL)
    found = RECORD.findall(puzzle.prompt)
    among_alike = name in ("niah_multikey_2", "niah_multikey_3")
    assert len(found) == num + 50 * among_alike
    assert {kind for kind, _, _ in found} == {values}
    assert len({key for _, key, _ in found}) == num_keys + 50 * among_alike
    assert all(re.fullmatch(KINDS[values], value) for _, _, value in found)
    keys = KINDS["uuids"] if name == "niah_multikey_3" else r"[\w' -]+-[\w' -]+"
    assert all(re.fullmatch(keys, key) for _, key, _ in found)
    queried = re.search(r"for (.+) mentioned in the provided text (?:is|are)$", puzzle.answer_start)
    assert len(queried[1].split(", ")) == num_asked
    assert puzzle.prompt.count("The grass is green.") == (50 if name == "niah_single_1" else 0)


@pytest.mark.parametrize("num_words", [1, 60, 3000])
def test_the_essay_begins_at_its_top_and_goes_round(num_words):
    text = SUBTASKS["niah_multivalue"].puzzle(num_words, TRIAL).prompt
    body = text.partition("afterwards.\n")[2].partition("\nWhat are")[0]
    assert len(RECORD.findall(body)) == 4
    words = RECORD.sub("", body).split()
    assert words == (list(SOURCES.essay) * 10)[:num_words]
    if num_words > 1:  # each needle stands between sentences
        around = RECORD.split(body)[::4]
        assert all(re.search(r"(^|[.!?]”?) $", part) for part in around[:-1] if part.strip())


def test_the_wording_of_a_prompt_is_the_published_one():
    needle = SUBTASKS["niah_single_2"].puzzle(1, TRIAL)
    key = RECORD.search(needle.prompt)[2]
    record = f"One of the special magic numbers for {key} is: {needle.targets[0]}."
    context = re.search(r"(?<=afterwards\.\n).*?(?=\n)", needle.prompt)[0]
    assert sorted(context.split(record)) == sorted(["", SOURCES.essay[0]]) or record in context
    assert needle.prompt.replace(context, "CONTEXT") == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I "
        "will quiz you about the number afterwards.\nCONTEXT\nWhat is the special magic number for "
        f"{key} mentioned in the provided text?"
    )
    many = SUBTASKS["niah_multiquery"].puzzle(1, TRIAL)
    assert many.prompt.startswith("Some special magic numbers are hidden within the following")
    assert re.search(r"What are all the special magic numbers for .+, .+, .+, and ", many.prompt)
    assert many.answer_start.startswith(" The special magic numbers for ")
    chain = SUBTASKS["vt"].puzzle(5, TRIAL)
    lines = chain.prompt.splitlines()
    assert lines[0] == (
        "Memorize and track the chain(s) of variable assignment hidden in the following text."
    )
    assert chain.prompt.count("The grass is green.") == 10 + 5
    assert re.search(
        r"they are:  [A-Z]{3}( [A-Z]{3}){4}\n\n\n\nMemorize .*text\.\n\nVAR [A-Z]{5} = \d{5} The "
        r"grass .* again\.\n VAR [A-Z]{5} = VAR [A-Z]{5}  The grass",
        chain.prompt,
    )
    assert re.fullmatch(
        r" Answer: According to the chain\(s\) of variable assignment in the text above, 5 "
        r"variables are assgined the value \d{5}, they are: ",
        chain.answer_start,
    )


@pytest.mark.parametrize(
    ("context_length", "example", "times"),
    [(4095, (40, 3, 1), (6, 1)), (4096, (190, 10, 3), (30, 3))],
)
def test_words_repeat_as_often_as_published(context_length, example, times):
    puzzle = SUBTASKS["cwe"].puzzle(25, Trial(SOURCES, context_length, 0))
    lists = re.findall(r"appear most often\.\n(.*)\nQuestion", puzzle.prompt)
    counts = []
    for text in lists:
        words = [word for _, word in re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", text)]
        counts.append(Counter(Counter(words).values()))
        numbers = [int(number) for number in re.findall(r"(\d+)\. ", text)]
        assert numbers == list(range(1, len(words) + 1))
    num, often, seldom = example
    assert counts[0] == {often: 10, seldom: (num - 10 * often) // seldom}
    assert counts[1] == {times[0]: 10, times[1]: 15}
    solution = re.search(r"in the list are: (1\. .+ 10\. \S+)\nBelow", puzzle.prompt)[1]
    shown = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", solution)
    first = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", lists[0])
    assert sorted(shown) == sorted(word for word, _ in Counter(first).most_common(10))


def test_coded_words_come_as_often_as_zipf_says():
    puzzle = SUBTASKS["fwe"].puzzle(1000, Trial(SOURCES, 4096, 0))
    counts = Counter(puzzle.prompt.partition("words. ")[2].partition("\nQuestion")[0].split(" "))
    ranked = counts.most_common()
    assert ranked[0] == ("...", 607)  # 1000 / zeta(2)
    assert [count for _, count in ranked[1:6]] == [151, 67, 37, 24, 16]
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])


@pytest.mark.parametrize("num_units", [1, 3, 6, 12])
def test_a_question_lies_among_documents_of_its_article_first(num_units):
    puzzle = SUBTASKS["qa_1"].puzzle(num_units, TRIAL)
    found = re.findall(r"Document (\d+):\n(Title \d+\nText of number (\d+)\.)", puzzle.prompt)
    assert [int(number) for number, _, _ in found] == list(range(1, num_units + 1))
    shown = {int(number) for _, _, number in found}
    assert len(shown) == num_units
    assert 3 in shown
    near = {1, 5, 7}
    assert len(near & shown) == min(3, num_units - 1) if num_units < 12 else near < shown
    assert puzzle.targets == ("number 3", "three")
    assert puzzle.prompt.endswith("\n\nQuestion: Which one?")
    assert puzzle.answer_start == " Answer:"
    second = SUBTASKS["qa_2"].puzzle(1, replace(TRIAL, index=1))
    assert {"Title 8", "Title 9"} <= set(second.prompt.splitlines())
    assert second.prompt.count("Document ") == 2


@pytest.mark.parametrize("name", SUBTASKS)
def test_a_prompt_is_a_pure_function_of_seed_length_and_number(name):
    subtask = SUBTASKS[name]
    num_units = max(8, subtask.least)
    first = subtask.puzzle(num_units, TRIAL)
    assert subtask.puzzle(num_units, TRIAL) == first
    others = [
        replace(TRIAL, sources=replace(SOURCES, seed=6)),
        replace(TRIAL, context_length=2049),
        *([replace(TRIAL, index=1)]),
    ]
    assert all(subtask.puzzle(num_units, other).prompt != first.prompt for other in others)


def test_gold_documents_and_needles_lie_at_all_places():
    """One order for all prompts would put what is asked for at one place."""
    gold = set()
    for seed in range(40):
        text = (
            SUBTASKS["qa_1"].puzzle(6, replace(TRIAL, sources=replace(SOURCES, seed=seed))).prompt
        )
        gold.add(text[: text.index("Title 3\n")].count("Document "))
    assert gold == set(range(1, 7))
    asked = set()
    for index in range(40):
        puzzle = SUBTASKS["niah_multikey_1"].puzzle(400, replace(TRIAL, index=index))
        values = [value for _, _, value in RECORD.findall(puzzle.prompt)]
        asked.add(values.index(puzzle.targets[0]))
    assert asked == {0, 1, 2, 3}
    assert json.loads(json.dumps(published())) == published()
