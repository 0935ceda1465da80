"""needle.py and the prompts that evaluation's tasks share: length, depth, scores, resume."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fixtures_eval import TEMPLATE, WORDS, Reader, prose, tiny_llama, train_tokenizer
from skipalign.errors import DataError, ModelError, RecipeError, RunError
from skipalign.evaluation import PromptMaker, RetrievalSettings, _placed, read_haystack
from skipalign.evaluation.metrics import wilson_interval
from skipalign.evaluation.needle import (
    CELLS,
    NeedleSettings,
    build_prompts,
    by_length,
    evaluate_needle,
)
from skipalign.files import read_json
from skipalign.generation import Completion, TransformersGenerator

OLMO = Path(__file__).parents[1].parent / "shared/data/tokenizers"
PRIDE = Path(__file__).parents[1].parent / "shared/data/haystack/pride_and_prejudice.txt"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def haystack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("haystack")
    (folder / "b.txt").write_text(prose(200, seed=1), encoding="utf-8")
    (folder / "a.txt").write_text(prose(200, seed=2), encoding="utf-8")
    (folder / "c.md").write_text("Not this.", encoding="utf-8")
    return str(folder)


@pytest.fixture
def settings(haystack):
    return NeedleSettings(
        lengths=(200, 400), depths=3, trials=4, haystack=haystack, max_new_tokens=8
    )


# ------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("kind", ["bytes", "unigram", "newlines"])
@pytest.mark.parametrize("distractors", [0, 4])
def test_a_prompt_is_what_training_would_tokenise_and_has_the_length_asked(
    kind, distractors, haystack
):
    """Joined by token ids, yet the very tokens of the rendered conversation."""
    tokenizer = train_tokenizer(kind)
    settings = NeedleSettings(
        lengths=(230, 231, 800), depths=4, trials=6, haystack=haystack, distractors=distractors
    )
    prompts = build_prompts(tokenizer, settings)
    assert len(prompts) == 3 * 4 * 6
    same = 0
    for prompt in prompts:
        assert len(prompt.ids) == prompt.context_length
        text = tokenizer.decode(prompt.ids)
        content = text.removeprefix("<s>").split("<|user|>")[1].split("<|end|>")[0].strip()
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        same += list(prompt.ids) == rendered
        assert f"The secret number of {prompt.key} is {prompt.value}." in text
        assert len(re.findall(r"The secret number of \w+ is \d{7}\.", text)) == 1 + distractors
        assert content.endswith(
            f"\n\nWhat is the secret number of {prompt.key}? Answer with the number alone."
        )
    # Where the passage is cut within a word, that word's tokens may be others.
    assert same >= 0.8 * len(prompts)


@pytest.mark.skipif(not OLMO.exists(), reason="the shared data folder is absent")
def test_prompts_of_a_real_tokenizer_and_a_real_book(tmp_path):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(next(OLMO.glob("*.json"))), eos_token="<|endoftext|>"
    )
    settings = NeedleSettings(
        lengths=(200, 2048), depths=5, trials=8, haystack=str(PRIDE), distractors=3
    )
    for prompt in build_prompts(tokenizer, settings):
        text = tokenizer.decode(prompt.ids)
        assert len(prompt.ids) == prompt.context_length
        assert list(prompt.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
        needle = f"The secret number of {prompt.key} is {prompt.value}."
        before, _, after = text.partition(needle)
        assert not re.search(r"\bMrs?\. $", before)
        assert after[:1] in {" ", "\n"}


def test_depth_is_realised_and_recorded(tokenizer, haystack):
    settings = NeedleSettings(
        lengths=(1000,), depths=(0.0, 0.3, 0.5, 1.0), trials=10, haystack=haystack, distractors=2
    )
    for prompt in build_prompts(tokenizer, settings):
        start = round(prompt.realised_depth * len(prompt.ids))
        told = tokenizer.decode(prompt.ids[start:]).lstrip()
        assert told.startswith(f"The secret number of {prompt.key} is {prompt.value}.")
        before = tokenizer.decode(prompt.ids[:start]).removesuffix(" ")
        assert before.endswith((">\n", ".", "!", "?", "”")) or prompt.depth == 1.0
        assert not before.endswith("Mr.")
        question = f"\n\nWhat is the secret number of {prompt.key}? Answer with the number alone."
        head, closing = 3, len(tokenizer(question, add_special_tokens=False)["input_ids"]) + 3
        needle = len(tokenizer(told.split(".")[0], add_special_tokens=False)["input_ids"]) + 1
        wanted = head + prompt.depth * (1000 - closing - head - needle)
        assert start == pytest.approx(wanted, abs=25)  # half of a long sentence
        if prompt.depth == 0.0:
            assert start == head


def test_the_needle_takes_the_place_nearest_to_its_depth():
    borders = np.array([0, 20, 30, 90, 100])
    lengths = [7, 11, 13, 17]
    for seed in range(200):
        for depth in (0.0, 0.25, 0.62, 1.0):
            placed = _placed(borders, depth, lengths, np.random.default_rng(seed))
            others = [(place, record) for place, record in placed if record]
            assert sorted(place for place, _ in placed) == [place for place, _ in placed]
            assert sorted(record for _, record in others) == [1, 2, 3]
            index = placed.index(next(pair for pair in placed if pair[1] == 0))
            found = placed[index][0] + sum(lengths[record] for _, record in placed[:index])
            best = min(
                abs(border + sum(lengths[record] for _, record in others[:before]) - depth * 141)
                for border in borders
                for before in range(4)
                if all(place <= border for place, _ in others[:before])
                and all(place >= border for place, _ in others[before:])
            )
            assert abs(found - depth * 141) == best


def test_distractors_lie_everywhere_and_share_no_key_or_value(tokenizer, haystack):
    settings = NeedleSettings(
        lengths=(600,),
        depths=(0.5,),
        trials=40,
        haystack=haystack,
        distractors=3,
        keys=("ash", "elm", "fir", "oak"),
        values=("11", "22", "33", "44"),
    )
    thirds = np.zeros(3)
    for prompt in build_prompts(tokenizer, settings):
        text = tokenizer.decode(prompt.ids)
        found = re.findall(r"number of (\w+) is (\d+)\.", text)
        assert sorted(key for key, _ in found) == ["ash", "elm", "fir", "oak"]
        assert sorted(value for _, value in found) == ["11", "22", "33", "44"]
        assert dict(found)[prompt.key] == prompt.value
        for match in re.finditer(r"number of (\w+) is", text):
            if match[1] != prompt.key:
                thirds[min(2, 3 * match.start() // len(text))] += 1
    assert thirds.min() > 15


def test_prompts_are_a_function_of_seed_length_depth_and_trial(tokenizer, settings):
    prompts = build_prompts(tokenizer, settings)
    fewer = replace(settings, lengths=(400,), trials={400: 2})
    chosen = [
        prompt for i, prompt in enumerate(prompts) if prompt.context_length == 400 and i % 4 < 2
    ]
    for one, other in zip(chosen, build_prompts(tokenizer, fewer), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
    again = build_prompts(tokenizer, replace(settings, seed=1))
    assert all(a.ids.tolist() != b.ids.tolist() for a, b in zip(prompts, again, strict=True))
    starts = {tuple(prompt.ids[60:80]) for prompt in prompts}
    assert len(starts) > 15  # each trial has a passage of its own
    assert len({prompt.value for prompt in prompts}) == len(prompts)


def test_a_passage_may_end_within_its_first_sentence(tokenizer, tmp_path):
    sentence = " ".join(WORDS.split() * 5).capitalize() + "."
    (tmp_path / "long.txt").write_text(f"{sentence} {sentence}", encoding="utf-8")
    settings = NeedleSettings(
        lengths=(150, 151, 152), depths=2, trials=3, haystack=str(tmp_path), distractors=1
    )
    for prompt in build_prompts(tokenizer, settings):
        assert len(prompt.ids) == prompt.context_length
        assert "The a river house" in tokenizer.decode(prompt.ids)


def test_prose_without_marks_has_places_at_spaces(tokenizer, tmp_path):
    (tmp_path / "long.txt").write_text(" ".join(WORDS.split() * 200), encoding="utf-8")
    settings = NeedleSettings(lengths=(2000,), depths=(0.5,), trials=5, haystack=str(tmp_path))
    for prompt in build_prompts(tokenizer, settings):
        assert prompt.realised_depth == pytest.approx(0.5, abs=0.06)
        text = tokenizer.decode(prompt.ids)
        assert re.search(r"(\w+) The secret number", text)[1] in WORDS.split()


def test_a_token_over_the_end_of_a_sentence_is_not_parted(tmp_path):
    tokenizer = train_tokenizer()
    tokenizer.add_tokens(["garden. The"])
    text = "The river was under the garden. The house stood near the river. " * 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    settings = NeedleSettings(lengths=(300,), depths=6, trials=5, haystack=str(tmp_path))
    for prompt in build_prompts(tokenizer, settings):
        before = tokenizer.decode(prompt.ids).partition(f"The secret number of {prompt.key} is")[0]
        assert before.rstrip().endswith((">", "river.")) or prompt.depth == 1.0


def test_a_short_text_is_repeated(tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text(prose(12), encoding="utf-8")
    settings = NeedleSettings(
        lengths=(900,), depths=(0.9,), trials=3, haystack=str(tmp_path / "short.txt")
    )
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s", " ".join(prose(12).split()))]
    for prompt in build_prompts(tokenizer, settings):
        text = tokenizer.decode(prompt.ids)
        assert len(prompt.ids) == 900
        assert all(text.count(sentence) >= 2 for sentence in sentences)
        assert f"{sentences[-1]} {sentences[0]}" in text
    assert PromptMaker(tokenizer, settings).described()["haystack_tokens"] < 450


def test_the_haystack_is_every_text_file_in_sorted_order(haystack):
    text = read_haystack(haystack)
    first, second = (" ".join(prose(200, seed=seed).split()) for seed in (2, 1))
    assert text == f"{first} {second}"
    assert read_haystack(f"{haystack}/b.txt") == second


def test_the_built_in_prose_is_long_enough_to_be_prose():
    words = read_haystack(None).split()
    assert len(words) > 5000


def test_haystacks_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_haystack(str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"holds no \*\.txt"):
        read_haystack(str(tmp_path))
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        read_haystack(str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8"):
        read_haystack(str(tmp_path))


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
    ],
)
def test_settings_that_make_no_prompts(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, **change)


def test_a_prompt_without_room_says_how_much_it_needs(tokenizer, settings):
    with pytest.raises(RecipeError, match=r"context_length 30: .* at least (\d+) are") as caught:
        build_prompts(tokenizer, replace(settings, lengths=(30,), trials=1, depths=1))
    least = int(re.search(r"at least (\d+)", str(caught.value)).group(1))
    key = NeedleSettings(lengths=(least,), depths=5, trials=1, haystack=settings.haystack)
    for length in range(least + 8, least + 24):  # other keys may take some tokens more
        for prompt in build_prompts(tokenizer, replace(key, lengths=(length,))):
            assert len(prompt.ids) == length


def test_special_tokens_in_texts_are_refused(tokenizer, settings):
    with pytest.raises(RecipeError, match=r"needle: '<\|end\|>' is a special token"):
        PromptMaker(tokenizer, replace(settings, needle="{key} <|end|> {value}"))
    with pytest.raises(RecipeError, match=r"keys and values: '<pad>' is a special token"):
        PromptMaker(tokenizer, replace(settings, values=("1", "<pad>")))


def test_a_tokenizer_that_parts_nothing_is_refused(settings):
    whole = Tokenizer(models.WordLevel({"<unk>": 0, "<|end|>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<|end|>")
    with pytest.raises(ModelError, match="reaches over the border"):
        PromptMaker(tokenizer, settings)


def test_templates_that_cannot_be_used(settings):
    twice = train_tokenizer(template=TEMPLATE + "{{ messages[0]['content'] }}")
    with pytest.raises(ModelError, match="2 times"):
        PromptMaker(twice, settings)
    refusing = train_tokenizer(template="{{ raise_exception('I want a system message') }}")
    with pytest.raises(ModelError, match="I want a system message"):
        PromptMaker(refusing, settings)


def test_a_tokenizer_without_a_template_gets_the_one_that_training_uses(settings):
    tokenizer = train_tokenizer(template=None)
    prompt = build_prompts(tokenizer, settings)[0]
    assert tokenizer.decode(prompt.ids).startswith("User:\n")
    assert tokenizer.decode(prompt.ids).endswith("Assistant:\n")


def test_template_kwargs_reach_the_template(settings):
    template = TEMPLATE + "{% if not enable_thinking %}no thoughts{% endif %}"
    tokenizer = train_tokenizer(template=template)
    quiet = replace(settings, template_kwargs={"enable_thinking": False})
    loud = replace(settings, template_kwargs={"enable_thinking": True})
    texts = [tokenizer.decode(build_prompts(tokenizer, each)[0].ids) for each in (quiet, loud)]
    assert [text.endswith("no thoughts") for text in texts] == [True, False]


# -------------------------------------------------------------------------------------- scores


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
    lines = [json.loads(line) for line in (tmp_path / CELLS).read_text().splitlines()]
    trials = [trial for cell in lines[1:] for trial in cell["trials"]]
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


def test_prompts_built_once_serve_several_models(tokenizer, settings, tmp_path, monkeypatch):
    prompts = build_prompts(tokenizer, settings)
    fresh = evaluate_needle(Reader(tokenizer), tokenizer, settings, tmp_path / "fresh")
    made, make = [], PromptMaker.make
    monkeypatch.setattr(PromptMaker, "make", lambda *given: made.append(1) or make(*given))
    built = evaluate_needle(
        Reader(tokenizer), tokenizer, settings, tmp_path / "built", prompts=prompts
    )
    assert fresh == built
    assert len(made) == 6  # one a cell, to see that they are those of the settings


def test_prompts_of_other_settings_are_refused(tokenizer, settings, tmp_path):
    prompts = build_prompts(tokenizer, replace(settings, seed=3))
    with pytest.raises(RecipeError, match="build them again"):
        evaluate_needle(Reader(tokenizer), tokenizer, settings, tmp_path, prompts=prompts)


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
    """Leave `out` as a kill would after `after` trials; every cell is asked on its own."""
    monkeypatch.setattr("skipalign.evaluation.needle._TOKENS_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_needle(Reader(tokenizer, dies_after=after), tokenizer, settings, out)
    assert not (out / "needle.json").exists()


@pytest.mark.parametrize("half", [b"", b'{"context_length": 400, "dep'])
def test_a_killed_run_goes_on_where_it_stopped(tokenizer, settings, tmp_path, monkeypatch, half):
    whole = tmp_path / "whole"
    evaluate_needle(Reader(tokenizer), tokenizer, settings, whole)
    out = tmp_path / "killed"
    interrupted(tokenizer, settings, out, monkeypatch, after=10)
    with (out / CELLS).open("ab") as handle:
        handle.write(half)
    reader = Reader(tokenizer)
    evaluate_needle(reader, tokenizer, settings, out)
    assert len(reader.prompts) == 24 - 8
    for name in ("needle.json", "needle.csv", CELLS):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    done = Reader(tokenizer)
    evaluate_needle(done, tokenizer, settings, out)
    assert done.prompts == []


def test_cells_of_other_settings_or_another_model_are_refused(
    tokenizer, settings, tmp_path, monkeypatch
):
    interrupted(tokenizer, settings, tmp_path, monkeypatch, after=10)
    before = (tmp_path / CELLS).read_bytes()
    other = replace(settings, seed=5, distractors=1)
    with pytest.raises(RunError, match=r"other distractors, seed; .*--overwrite"):
        evaluate_needle(Reader(tokenizer), tokenizer, other, tmp_path)
    with pytest.raises(RunError, match=r"other model;"):
        evaluate_needle(Reader(tokenizer, identity="new"), tokenizer, settings, tmp_path)
    another = train_tokenizer(template="<s>" + TEMPLATE)
    with pytest.raises(RunError, match=r"other prompts;"):
        evaluate_needle(Reader(another), another, settings, tmp_path)
    assert (tmp_path / CELLS).read_bytes() == before
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
    lines = (tmp_path / CELLS).read_text().splitlines(keepends=True)
    (tmp_path / CELLS).write_text(lines[0] + lines[1][:20] + "\n" + lines[2])
    with pytest.raises(RunError, match=r"jsonl line 2: not JSON .* delete the file"):
        evaluate_needle(Reader(tokenizer), tokenizer, settings, tmp_path)


def test_a_kill_within_the_first_line_is_a_new_start(tokenizer, settings, tmp_path):
    (tmp_path / CELLS).write_text('{"digest": "ab')
    reader = Reader(tokenizer)
    evaluate_needle(reader, tokenizer, settings, tmp_path)
    assert len(reader.prompts) == 24


def test_settings_are_shared_by_both_tasks():
    assert RetrievalSettings().draw(np.random.default_rng(0))[0][1].isdecimal()
    drawn = RetrievalSettings(distractors=9).draw(np.random.default_rng(0))
    assert len({key for key, _ in drawn}) == len({value for _, value in drawn}) == 10
    assert all(len(value) == 7 for _, value in drawn)
