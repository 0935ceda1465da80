"""needle.py: the grid, its scores and files, and how it goes on after a kill."""

import csv
import json
import re
from dataclasses import replace

import pytest

from fixtures_eval import (
    TEMPLATE,
    Reader,
    chinese_prose,
    prose,
    tiny_llama,
    train_tokenizer,
    write_haystack,
)
from skipalign import tiny
from skipalign.errors import RecipeError, RunError
from skipalign.evaluation.metrics import wilson_interval
from skipalign.evaluation.needle import (
    TRIALS,
    NeedleSettings,
    by_length,
    evaluate_needle,
)
from skipalign.files import read_json
from skipalign.generation import Completion
from skipalign.model import load_model, load_tokenizer
from skipalign.tiny.corpus import KEYS, VALUES
from skipalign.transformers_engine import TransformersGenerator


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def haystack(tmp_path_factory):
    return write_haystack(tmp_path_factory.mktemp("haystack"), 200)


@pytest.fixture
def settings(haystack):
    return NeedleSettings(
        lengths=(200, 400), depths=3, trials=4, haystack=haystack, max_new_tokens=8, nested=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needle": "The number is {value}."}, r"needle is .* must hold \{key\}"),
        ({"question": "Which number?"}, r"question is .* must hold \{key\}"),
        ({"keys": ("a", "b"), "distractors": 2}, r"2 keys for 2 distractors"),
        ({"keys": ()}, r"0 keys"),
        ({"values": ("1", "1"), "distractors": 1}, r"1 values for 1 distractors"),
        ({"max_new_tokens": 0}, r"max_new_tokens 0"),
        ({"lengths": ()}, r"lengths are \[\]"),
        ({"lengths": (100, 100)}, r"lengths are \[100, 100\]"),
        ({"depths": (0.5, 1.2)}, r"depths are"),
        ({"depths": 0}, r"depths are 0"),
        ({"trials": {200: 3}}, r"trials for length 400 are 0"),
        ({"tokens_per_record": 10}, r"38 keys for 39 distractors .* in 400 tokens"),
    ],
)
def test_settings_that_make_no_prompts(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, **change)


# -------------------------------------------------------------------------------------- scores


class ChineseReader:
    """Finds every needle asked for, and says what is found as `say` puts it."""

    identity = "chinese reader"

    def __init__(self, tokenizer, say):
        self.tokenizer, self.say = tokenizer, say

    def generate(self, prompts, *, max_new_tokens, position_ids=None):
        return [Completion([], self._answer(self.tokenizer.decode(ids))) for ids in prompts]

    def _answer(self, text):
        keys = re.search(r"\n\n(.+)的秘密数字是多少？", text)[1].split("和")
        values = [re.findall(rf"{key}的秘密数字是(\d+)。", text) for key in keys]
        assert all(len(each) == 1 for each in values), text
        return self.say([value for (value,) in values])


@pytest.mark.parametrize("nested", [False, True])
def test_chinese_needles_are_found_and_graded(tokenizer, tmp_path, nested):
    (tmp_path / "text.txt").write_text(chinese_prose(), encoding="utf-8")
    num = 1 if nested else 2
    settings = NeedleSettings(
        lengths=(600,),
        depths=3,
        trials=3,
        language="zh",
        haystack=str(tmp_path),
        nested=nested,
        num_needles=num,
    )
    said = {
        "right": lambda values: "数字分别是" + "与".join(values) + "。",
        "half": lambda values: f"是{values[0]}吧" if num == 2 else f"一{values[0]}2",
    }
    for name, say in said.items():
        reader = ChineseReader(tokenizer, say)
        document = evaluate_needle(reader, tokenizer, settings, tmp_path / name)
        assert document["settings"]["needle"] == "{key}的秘密数字是{value}。"
        for cell in document["cells"]:
            assert cell["n"] == 3
            assert cell["mean"] == (name == "right")
            share = 1 if name == "right" else (0.5 if num == 2 else 0)
            assert (cell["share_found"], cell["rouge1_recall"], cell["word_share"]) == (share,) * 3
            assert 597 <= cell["mean_realised_length"] <= 600


def test_scores_and_files(tokenizer, settings, tmp_path):
    document = evaluate_needle(Reader(tokenizer, longest=300), tokenizer, settings, tmp_path)
    assert document == read_json(tmp_path / "needle.json")
    assert document["task"] == "needle"
    assert document["settings"]["lengths"] == [200, 400]
    assert document["settings"]["seed"] == 0
    grid = [(cell["context_length"], cell["depth"]) for cell in document["cells"]]
    assert grid == [(length, depth) for length in (200, 400) for depth in (0.0, 0.5, 1.0)]
    for cell in document["cells"]:
        correct = 4 if cell["context_length"] == 200 else 0
        assert (cell["n"], cell["correct"], cell["mean"]) == (4, correct, correct / 4)
        assert (cell["low"], cell["high"]) == wilson_interval(correct, 4)
        assert cell["realised_lengths"] == [cell["context_length"]] * 4
        assert len(cell["realised_depths"]) == 4
        assert "trials" not in cell
    known = {"low": pytest.approx(0.7575, abs=1e-4), "high": 1.0}
    missed = {"low": 0.0, "high": pytest.approx(0.2425, abs=1e-4)}
    assert by_length(document) == [
        {"context_length": 200, "n": 12, "correct": 12, "mean": 1.0, **known},
        {"context_length": 400, "n": 12, "correct": 0, "mean": 0.0, **missed},
    ]
    with (tmp_path / "needle.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 6
    assert rows[3]["context_length"] == "400"
    assert rows[3]["high"] == str(document["cells"][3]["high"])
    from matplotlib.image import imread

    picture = imread(tmp_path / "needle.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500


def test_every_trial_can_be_looked_at(tokenizer, settings, tmp_path):
    reader = Reader(tokenizer)
    evaluate_needle(reader, tokenizer, settings, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / TRIALS).read_text().splitlines()]
    trials = lines[1:]
    assert len(trials) == 24
    assert [trial["answer"] for trial in trials] == [f"It is {t['value']}." for t in trials]
    assert all(
        f"number of {trial['key']} is {trial['value']}" in prompt
        for trial, prompt in zip(trials, reader.prompts, strict=True)
    )


class FirstRecord(Reader):
    """Answers with whatever record stands first."""

    def _answer(self, prompt, positions):
        text = self.tokenizer.decode(prompt)
        return Completion([], re.search(r"secret number of \w+ is (\d+)", text).group(1))


def test_the_value_of_a_distractor_is_wrong(tokenizer, settings, tmp_path):
    asked = replace(settings, distractors=3, lengths=(400,), trials=12, depths=(0.0, 1.0))
    document = evaluate_needle(FirstRecord(tokenizer), tokenizer, asked, tmp_path)
    assert [cell["mean"] for cell in document["cells"]] == [1.0, 0.0]


def test_trials_by_length(tokenizer, settings, tmp_path):
    asked = replace(settings, trials={200: 3, 400: 1})
    document = evaluate_needle(Reader(tokenizer), tokenizer, asked, tmp_path)
    assert [row["n"] for row in by_length(document)] == [9, 3]


def test_progress_counts_every_trial(tokenizer, settings, tmp_path):
    from contextlib import contextmanager

    class Counter:
        def __init__(self):
            self.total = self.done = 0

        @contextmanager
        def bar(self, description, total):
            self.total = total
            yield self

        def advance(self, amount=1):
            self.done += amount

    progress = Counter()
    evaluate_needle(Reader(tokenizer), tokenizer, settings, tmp_path, progress)
    assert progress.total == progress.done == 24


def test_a_real_model_is_asked(tokenizer, settings, tmp_path):
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    document = evaluate_needle(generator, tokenizer, settings, tmp_path)
    assert sum(cell["n"] for cell in document["cells"]) == 24
    assert sum(cell["correct"] for cell in document["cells"]) == 0


# -------------------------------------------------------------------------------------- resume


def interrupted(tokenizer, settings, out, monkeypatch, after):
    """Leave `out` as a kill would after `after` trials; every prompt is asked on its own."""
    monkeypatch.setattr("skipalign.generation._TOKENS_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_needle(Reader(tokenizer, dies_after=after), tokenizer, settings, out)
    assert not (out / "needle.json").exists()


@pytest.mark.parametrize("half", [b"", b'{"context_length": 400, "dep'])
def test_a_killed_run_goes_on_where_it_stopped(tokenizer, settings, tmp_path, monkeypatch, half):
    whole = tmp_path / "whole"
    evaluate_needle(Reader(tokenizer), tokenizer, settings, whole)
    out = tmp_path / "killed"
    interrupted(tokenizer, settings, out, monkeypatch, after=10)
    with (out / TRIALS).open("ab") as handle:
        handle.write(half)
    reader = Reader(tokenizer)
    evaluate_needle(reader, tokenizer, settings, out)
    assert len(reader.prompts) == 24 - 10
    for name in ("needle.json", "needle.csv", TRIALS):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    done = Reader(tokenizer)
    evaluate_needle(done, tokenizer, settings, out)
    assert done.prompts == []


def test_trials_of_other_settings_or_another_model_are_refused(
    tokenizer, settings, tmp_path, monkeypatch
):
    interrupted(tokenizer, settings, tmp_path, monkeypatch, after=10)
    before = (tmp_path / TRIALS).read_bytes()
    other = replace(settings, seed=5, distractors=1)
    with pytest.raises(RunError, match=r"holds trials .* other distractors, seed; .*--overwrite"):
        evaluate_needle(Reader(tokenizer), tokenizer, other, tmp_path)
    with pytest.raises(RunError, match=r"other model;"):
        evaluate_needle(Reader(tokenizer, identity="new"), tokenizer, settings, tmp_path)
    another = train_tokenizer(template="<s>" + TEMPLATE)
    with pytest.raises(RunError, match=r"other prompts;"):
        evaluate_needle(Reader(another), another, settings, tmp_path)
    assert (tmp_path / TRIALS).read_bytes() == before
    reader = Reader(tokenizer)
    evaluate_needle(reader, tokenizer, other, tmp_path, overwrite=True)
    assert len(reader.prompts) == 24


def test_a_changed_haystack_is_another_setting(tokenizer, settings, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text(prose(50), encoding="utf-8")
    asked = replace(settings, haystack=str(text))
    interrupted(tokenizer, asked, tmp_path / "out", monkeypatch, after=10)
    text.write_text(prose(51), encoding="utf-8")
    with pytest.raises(RunError, match="haystack_sha256"):
        evaluate_needle(Reader(tokenizer), tokenizer, asked, tmp_path / "out")


def test_a_broken_line_within_is_an_error(tokenizer, settings, tmp_path, monkeypatch):
    interrupted(tokenizer, settings, tmp_path, monkeypatch, after=10)
    lines = (tmp_path / TRIALS).read_text().splitlines(keepends=True)
    (tmp_path / TRIALS).write_text(lines[0] + lines[1][:20] + "\n" + lines[2])
    with pytest.raises(RunError, match=r"jsonl line 2: not JSON .* delete the file"):
        evaluate_needle(Reader(tokenizer), tokenizer, settings, tmp_path)


def test_a_kill_within_the_first_line_is_a_new_start(tokenizer, settings, tmp_path):
    (tmp_path / TRIALS).write_text('{"digest": "ab')
    reader = Reader(tokenizer)
    evaluate_needle(reader, tokenizer, settings, tmp_path)
    assert len(reader.prompts) == 24


# --------------------------------------------------------------------------------------- reuse

NAMES = {
    "needle": "{key} {value} came.",
    "question": "Who is {key}?",
    "separator": " ",
    "keys": KEYS,
    "values": VALUES,
    "max_new_tokens": 6,
}


def answers_of(out):
    lines = [json.loads(line) for line in (out / TRIALS).read_text().splitlines()[1:]]
    return {(t["context_length"], t["depth"], t["trial"]): t["answer"] for t in lines}


@pytest.mark.parametrize("tokens_per_record", [None, 40])
def test_reuse_changes_no_answer_of_the_tiny_base(tmp_path, tokens_per_record):
    generator = TransformersGenerator(load_model(str(tiny.BASE)), load_tokenizer(str(tiny.BASE)))
    asked = NeedleSettings(
        lengths=(96, 192, 288, 384),
        depths=5,
        trials={96: 1, 192: 2, 288: 2, 384: 2},
        nested=True,
        tokens_per_record=tokens_per_record,
        **NAMES,
    )
    documents = [
        evaluate_needle(generator, generator.tokenizer, each, tmp_path / str(each.reuse))
        for each in (asked, replace(asked, reuse=False))
    ]
    answers = answers_of(tmp_path / "True")
    assert answers == answers_of(tmp_path / "False")
    assert len(answers) == 35
    assert len(set(answers.values())) > 10
    assert documents[0]["cells"] == documents[1]["cells"]
    for row in by_length(documents[0]):
        cells = [c for c in documents[0]["cells"] if c["context_length"] == row["context_length"]]
        assert row["correct"] == sum(cell["correct"] for cell in cells)
        low, high = wilson_interval(row["correct"], row["n"])
        assert row["low"] <= low <= high <= row["high"]
    reused, plain = (document["reuse"] for document in documents)
    assert (reused["used"], reused["reason"]) == (True, None)
    assert (plain["used"], plain["reason"]) == (False, "reuse is false")
    total = 5 * 96 + 2 * 5 * (192 + 288 + 384)
    assert reused["prompt_tokens"] == plain["prompt_tokens"] == plain["computed_tokens"] == total
    assert reused["computed_tokens"] < total / 2
    assert reused["num_checked"] == 4
    assert 0 <= reused["largest_logit_difference"] < 1e-3
    assert reused["answers_that_differ"] == []
    assert sum(cell["correct"] for cell in documents[0]["cells"]) > 0


def test_what_reuse_got_wrong_is_told(tokenizer, settings, tmp_path, monkeypatch):
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    monkeypatch.setattr("transformers.DynamicCache.crop", crop_values_alone)
    asked = replace(settings, nested=True, trials=1)
    found = evaluate_needle(generator, tokenizer, asked, tmp_path)["reuse"]
    assert found["largest_logit_difference"] > 1e-3
    answers = answers_of(tmp_path)
    for each in found["answers_that_differ"]:
        place = each["context_length"], each["depth"], each["trial"]
        assert answers[place] == each["answer"] != each["plain_answer"]
    assert found["answers_that_differ"]


def crop_values_alone(cache, num):
    """A fault: keys stay those of the prompt before, as if they depended on nothing."""
    for layer in cache.layers:
        if num and layer.is_initialized:
            keys, layer.values = layer.keys, layer.values[..., :num, :]
            layer.keys = keys[..., -num:, :]


def test_without_shared_beginnings_nothing_is_reused(tokenizer, settings, tmp_path):
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    found = evaluate_needle(generator, tokenizer, replace(settings, trials=1), tmp_path / "a")
    assert found["reuse"]["used"] is False
    assert "nested is false" in found["reuse"]["reason"]
    nested = replace(settings, nested=True)
    found = evaluate_needle(Reader(tokenizer), tokenizer, nested, tmp_path / "b")
    assert found["reuse"]["reason"] == "Reader has no cache that can be cropped"
    assert sum(cell["correct"] for cell in found["cells"]) == 24


def test_a_killed_run_with_reuse_goes_on_where_it_stopped(tokenizer, settings, tmp_path):
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    asked = replace(settings, nested=True)
    whole = evaluate_needle(generator, tokenizer, asked, tmp_path / "whole")
    calls, answer = [], generator.answer_from

    def dies(*given):
        calls.append(given)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return answer(*given)

    generator.answer_from = dies
    with pytest.raises(KeyboardInterrupt):
        evaluate_needle(generator, tokenizer, asked, tmp_path / "killed")
    done = len(answers_of(tmp_path / "killed"))
    assert 0 < done < 15
    generator.answer_from = answer
    again = evaluate_needle(generator, tokenizer, asked, tmp_path / "killed")
    assert answers_of(tmp_path / "killed") == answers_of(tmp_path / "whole")
    assert again["cells"] == whole["cells"]
    assert again["reuse"]["num_checked"] == 4
    # The trial that was cut in two is read from its beginning once more.
    assert again["reuse"]["computed_tokens"] > whole["reuse"]["computed_tokens"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distractors": 1}, "distractors is 1: .* give tokens_per_record"),
        ({"num_needles": 2}, "num_needles is 2: .* ask for one"),
        ({"link": "{key} met {other}."}, "link is '{key} met {other}.'"),
        ({"near_keys": True, "keys": (("A", "B"), ("C", "D"))}, "near_keys is True"),
        ({"question_first": True}, "question_first is True: .* not alike"),
    ],
)
def test_prompts_that_cannot_be_nested(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, nested=True, **change)
    assert replace(settings, nested=None, **change).nested is False
    assert replace(settings, nested=None).nested is True
