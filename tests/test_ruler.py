"""ruler.py: prompts that fill their length, official question files, scores with intervals."""

import json
from dataclasses import replace

import pytest

from fixtures_eval import prose
from fixtures_suites import Teller, tokenizer
from skipalign import tiny
from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.ruler import (
    RulerSettings,
    SampleMaker,
    evaluate_ruler,
    match_all,
    match_part,
    read_sources,
)
from skipalign.evaluation.ruler_samples import SUBTASKS, published
from skipalign.evaluation.suites import Asker
from skipalign.files import read_json
from skipalign.model import load_model, load_tokenizer
from skipalign.transformers_engine import TransformersGenerator


def squad(num_articles=12):
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"T{article}",
                "paragraphs": [
                    {
                        "context": f"In {article} the {place} was found by P{article}{place}.",
                        "qas": [
                            {
                                "question": f"Who found the {place} in {article}?",
                                "answers": [{"text": f"P{article}{place}"}, {"text": "a finder"}],
                                "is_impossible": False,
                            },
                            {"question": "Who lost it?", "answers": [], "is_impossible": True},
                        ],
                    }
                    for place in ("comb", "ring")
                ],
            }
            for article in range(num_articles)
        ],
    }


def hotpotqa(num=20):
    return [
        {
            "question": f"Which river is near town {number}?",
            "answer": f"River {number}",
            "context": [
                [f"Town {number}", ["It is old.", f" It lies at River {number}."]],
                [f"Town {number + 1}", ["It is new."]],
            ],
        }
        for number in range(num)
    ]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruler")
    (folder / "squad.json").write_text(json.dumps(squad()))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa()))
    (folder / "essay.txt").write_text(prose(80))
    return RulerSettings(
        lengths=(1800,),
        trials=2,
        haystack=str(folder / "essay.txt"),
        squad=str(folder / "squad.json"),
        hotpotqa=str(folder / "hotpotqa.json"),
    )


def samples_of(settings):
    asker = Asker(Teller(str), tokenizer(), settings, chat=settings.chat)
    return asker, list(SampleMaker(asker, read_sources(settings)[0]).samples(settings))


@pytest.mark.parametrize(("lengths", "chat"), [((1800, 2300), True), ((1801,), False)])
def test_prompts_fill_their_length_and_never_exceed_it(settings, lengths, chat):
    asker, samples = samples_of(replace(settings, lengths=lengths, chat=chat))
    assert len(samples) == len({sample.id for sample in samples}) == len(lengths) * 13 * 2
    for sample in samples:
        length, task = sample.labels["context_length"], sample.labels["name"]
        assert sample.max_new_tokens == published()[SUBTASKS[task].form]["max_new_tokens"]
        num_tokens = len(asker.tokens(sample)[0]) + sample.max_new_tokens
        assert num_tokens <= length
        # The question files are smaller than the longer prompts.
        assert num_tokens > 0.9 * length or task.startswith("qa")


def test_a_question_file_is_used_up_where_it_fits(settings):
    _, samples = samples_of(replace(settings, lengths=(2300,), tasks=("qa_1", "qa_2"), trials=1))
    one, two = (sample.prompt for sample in samples)
    assert one.count("Document ") == 24
    assert two.count("Document ") == 40
    assert "Town 0\nIt is old. It lies at River 0." in two
    assert samples[0].target == ["P0comb", "a finder"]
    assert samples[1].target == ["River 0"]


def test_the_answer_goes_on_from_its_start_after_the_template(settings):
    asker, samples = samples_of(replace(settings, tasks=("fwe",), trials=1))
    text = tokenizer().decode(asker.tokens(samples[0])[0])
    assert text.endswith(
        "above coded text?<|end|>\n<|assistant|>\n Answer: According to the coded text above, the "
        "three most frequently appeared words are:"
    )
    asker, samples = samples_of(replace(settings, tasks=("fwe",), trials=1, chat=False))
    text = tokenizer().decode(asker.tokens(samples[0])[0])
    assert "above coded text? Answer: According to" in text
    assert "<|" not in text


def test_prompts_are_the_same_whatever_else_is_asked(settings):
    """So that a run that goes on asks what it would have asked."""
    _, some = samples_of(replace(settings, tasks=("fwe", "niah_single_2")))
    _, all_of_them = samples_of(replace(settings, tasks=("niah_single_2", "vt", "fwe")))
    by_id = {sample.id: sample for sample in all_of_them}
    assert [by_id[sample.id] for sample in some] == some
    assert some[0].prompt != some[1].prompt


@pytest.mark.parametrize(
    ("answer", "targets", "all_of", "part"),
    [
        ("They are 1234567 and 7654321.", ["1234567", "7654321"], 1, 1),
        ("1234567", ["1234567", "7654321", "1", "9"], 0.5, 1),
        ("PARIS", ["Paris"], 1, 1),
        ("new\x00york", ["new\nyork"], 1, 1),
        ("", ["Paris", "the capital"], 0, 0),
    ],
)
def test_answers_are_matched_as_published(answer, targets, all_of, part):
    assert match_all(answer, targets) == all_of
    assert match_part(answer, targets) == part


def test_scores_by_task_and_length_and_the_effective_length(settings, tmp_path):
    """All is answered at the shorter length, questions alone at the longer."""
    asked = replace(settings, lengths=(2300, 1800), trials=1)
    asker, samples = samples_of(asked)
    known = {tuple(asker.tokens(sample)[0].tolist()): sample for sample in samples}

    class Knowing(Teller):
        def generate(self, prompts, *, max_new_tokens, position_ids=None):
            found = [known[tuple(ids)] for ids in prompts]
            self.limits += [max_new_tokens] * len(prompts)
            answers = super().generate(prompts, max_new_tokens=max_new_tokens)
            return [
                replace(answer, text=self.said(sample))
                for answer, sample in zip(answers, found, strict=True)
            ]

        def said(self, sample):
            if sample.labels["name"].startswith("qa"):
                return f"It is {sample.target[0].upper()}."
            num = len(sample.target)
            num = num if sample.labels["context_length"] == 1800 else num // 2
            return "; ".join(sample.target[:num])

    document = evaluate_ruler(Knowing(str), tokenizer(), asked, tmp_path)
    assert document == read_json(tmp_path / "ruler.json")
    cells = {(cell["name"], cell["context_length"]): cell for cell in document["cells"]}
    assert len(cells) == 26
    assert all(cell["n"] == len(cell["values"]) == 1 for cell in cells.values())
    assert {cells[name, 1800]["mean"] for name in SUBTASKS} == {1}
    halves = dict.fromkeys(SUBTASKS, 0) | {"niah_multivalue": 0.5, "niah_multiquery": 0.5}
    halves |= {"vt": 2 / 5, "cwe": 0.5, "fwe": 1 / 3, "qa_1": 1, "qa_2": 1}
    for name, mean in halves.items():
        assert cells[name, 2300]["mean"] == pytest.approx(mean)
    short, long = document["by_length"]
    assert (short["context_length"], long["context_length"]) == (1800, 2300)
    assert (short["n"], short["mean"]) == (13, 1)
    assert long["mean"] == pytest.approx(sum(halves.values()) / 13)
    assert long["low"] <= long["mean"] <= long["high"]
    assert document["summary"]["effective_length"] == 1800
    some = replace(asked, tasks=("qa_1", "qa_2"))
    assert (
        evaluate_ruler(Knowing(str), tokenizer(), some, tmp_path / "some")["summary"][
            "effective_length"
        ]
        is None
    )


class Dying(TransformersGenerator):
    """Counts prompts, and dies before more than `most`."""

    most = 10**9

    def generate(self, prompts, *, max_new_tokens, position_ids=None):
        self.num = getattr(self, "num", 0) + len(prompts)
        if self.num > self.most:
            raise KeyboardInterrupt
        return super().generate(prompts, max_new_tokens=max_new_tokens)


def test_the_tiny_model_answers_all_13_killed_and_resumed(settings, tmp_path):
    base = str(tiny.BASE)
    tokenizer = load_tokenizer(base)
    asked = replace(settings, lengths=(1600,), trials=1)
    dying = Dying(load_model(base), tokenizer)
    dying.most = 9
    with pytest.raises(KeyboardInterrupt):
        evaluate_ruler(dying, tokenizer, asked, tmp_path)
    kept = (tmp_path / "ruler.trials.jsonl").read_text()
    assert 1 <= kept.count("\n") - 1 <= 9
    again = Dying(dying.model, tokenizer)
    document = evaluate_ruler(again, tokenizer, asked, tmp_path)
    lines = (tmp_path / "ruler.trials.jsonl").read_text()
    assert lines.startswith(kept)
    rows = [json.loads(line) for line in lines.splitlines()[1:]]
    assert again.num == 13 - (kept.count("\n") - 1)
    assert [row["name"] for row in rows] == list(SUBTASKS)
    for row in rows:
        assert row["num_tokens"] + published()[SUBTASKS[row["name"]].form]["max_new_tokens"] <= 1600
    assert [cell["name"] for cell in document["cells"]] == list(SUBTASKS)
    assert document["by_length"][0]["n"] == 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": ()}, r"lengths are \[\]"),
        ({"lengths": (512, 512)}, r"lengths are \[512, 512\]"),
        ({"trials": 0}, r"trials are 0"),
        ({"tasks": ("vt", "niah")}, r"tasks are \['vt', 'niah'\]"),
        ({"tasks": ("vt", "vt")}, r"give unlike names"),
        ({"squad": None}, r"tasks hold qa_1 and squad is None; give its published file"),
        ({"hotpotqa": None}, r"tasks hold qa_2 and hotpotqa is None"),
    ],
)
def test_settings_that_ask_nothing(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, **change)


def test_without_questions_no_file_is_needed(settings):
    some = replace(settings, tasks=("vt",), squad=None, hotpotqa=None, haystack="/absent")
    assert len(samples_of(some)[1]) == 2


def test_files_that_are_not_as_published(settings, tmp_path):
    def refused(name, content, message):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content) if not isinstance(content, str) else content)
        with pytest.raises(DataError, match=message):
            read_sources(replace(settings, **{name: str(path)}))

    refused("squad", hotpotqa(), r"squad .*file\.json: not as published \(TypeError")
    refused("squad", {"data": [{"paragraphs": [{}]}]}, r"KeyError: 'context'")
    refused("hotpotqa", squad(), r"hotpotqa .*: not as published")
    refused("hotpotqa", "{", r"not as published \(JSONDecodeError")
    refused("hotpotqa", hotpotqa(1), r"has 1 questions, and trials are 2")
    with pytest.raises(DataError, match=r"squad /absent: no such file"):
        read_sources(replace(settings, squad="/absent"))


def test_a_length_that_is_too_short_for_a_task_is_named(settings):
    short = replace(settings, lengths=(600,), tasks=("niah_single_1", "cwe"))
    with pytest.raises(RecipeError, match=r"length 600: the shortest prompt of cwe number 1 takes"):
        samples_of(short)
