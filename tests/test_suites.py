"""suites.py: every sample is asked once, as the benchmark asks it, and scored with its interval."""

import json

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from fixtures_eval import train_tokenizer
from fixtures_suites import Teller, tokenizer
from skipalign.errors import DataError, ModelError, RecipeError, RunError
from skipalign.evaluation.metrics import wilson_interval
from skipalign.evaluation.suites import (
    Asker,
    Sample,
    SuiteSettings,
    accuracy,
    counts,
    grouped,
    mean_of_means,
    mean_score,
)
from skipalign.progress import Silent

SETTINGS = SuiteSettings(data="made-up")


def sample(number, prompt="Which number?", *, most=8, system=""):
    return Sample(
        f"s{number}", {"name": "odd" if number % 2 else "even"}, prompt, "7", most, system
    )


def is_right(sample, answer):
    return float(answer == sample.target)


def ask(teller, samples, out, settings=SETTINGS, *, chat=True):
    asker = Asker(teller, tokenizer(), settings, chat=chat)
    with Silent().bar("test", total=None) as bar:
        return asker.ask(samples, is_right, asker.log(out, "made", "data"), bar)


def test_a_prompt_is_what_the_chat_template_makes_of_it(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    for system, asked in (("", messages[1:]), ("Be brief.", messages)):
        asker = Asker(Teller(str), tokenizer(), SETTINGS)
        ids, was_cut = asker.tokens(sample(0, "Which?", system=system))
        text = tokenizer().apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert ids.tolist() == tokenizer()(text, add_special_tokens=False)["input_ids"]
        assert not was_cut


def test_without_chat_a_prompt_is_plain_text_after_bos(tmp_path):
    with_bos = train_tokenizer()
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    for made, bos in ((tokenizer(), []), (with_bos, [1])):
        ids, _ = Asker(Teller(str), made, SETTINGS, chat=False).tokens(sample(0, "Which?"))
        assert ids.tolist() == bos + made("Which?", add_special_tokens=False)["input_ids"]


def test_special_tokens_in_a_prompt_are_text():
    asker = Asker(Teller(str), tokenizer(), SETTINGS)
    plain, _ = asker.tokens(sample(0, "A text."))
    ids, _ = asker.tokens(sample(0, "A <|end|> text."))
    end = tokenizer().convert_tokens_to_ids("<|end|>")
    assert ids.tolist().count(end) == plain.tolist().count(end)


@pytest.mark.parametrize("limit", [20, 21])
def test_a_long_prompt_loses_its_middle_before_the_template(limit):
    prompt = " ".join(f"w{number}" for number in range(40))
    asker = Asker(Teller(str), tokenizer(), SuiteSettings(data="x", max_prompt_tokens=limit))
    ids, was_cut = asker.tokens(sample(0, prompt))
    whole = tokenizer()(prompt)["input_ids"]
    kept = tokenizer().decode(whole[: limit // 2] + whole[limit // 2 - limit :])
    assert was_cut
    expected, _ = Asker(Teller(str), tokenizer(), SETTINGS).tokens(sample(0, kept))
    assert ids.tolist() == expected.tolist()
    assert len(whole) > 60
    short, was_cut = asker.tokens(sample(0, "短い文。"))  # more tokens than characters
    assert not was_cut
    assert len(short) > len("短い文。")


def test_rows_hold_what_was_asked_and_answered(tmp_path):
    teller = Teller(lambda text: "7" if "odd" in text else "8")
    samples = [sample(n, "An odd question" if n % 2 else "Even") for n in range(5)]
    rows = ask(teller, samples, tmp_path)
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3", "s4"]
    assert [row["score"] for row in rows] == [0, 1, 0, 1, 0]
    assert rows[1] == {
        "id": "s1",
        "name": "odd",
        "prediction": "7",
        "target": "7",
        "score": 1.0,
        "num_tokens": len(teller.ids[1]),
        "was_cut": False,
    }
    lines = (tmp_path / "made.trials.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines[1:]] == rows


def test_samples_are_asked_together_by_tokens_and_by_length_of_the_answer(tmp_path, monkeypatch):
    one = len(Asker(Teller(str), tokenizer(), SETTINGS).tokens(sample(0))[0])
    monkeypatch.setattr("skipalign.generation._TOKENS_AT_ONCE", 3 * one)
    groups = []
    teller = Teller(lambda _: "7")
    generate = teller.generate

    def counted(prompts, *, max_new_tokens):
        groups.append((len(prompts), max_new_tokens))
        return generate(prompts, max_new_tokens=max_new_tokens)

    teller.generate = counted
    ask(teller, [sample(n, most=8 if n < 5 else 9) for n in range(7)], tmp_path)
    assert groups == [(3, 8), (2, 8), (2, 9)]
    assert teller.limits == [8] * 5 + [9] * 2


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("skipalign.generation._TOKENS_AT_ONCE", 1)
    samples = [sample(n, f"Question {n}") for n in range(6)]
    expected = ask(Teller(lambda text: text[-3:]), samples, tmp_path / "whole")
    first = Teller(lambda text: text[-3:])
    first.dies_after = 2
    with pytest.raises(KeyboardInterrupt):
        ask(first, samples, tmp_path / "killed")
    path = tmp_path / "killed" / "made.trials.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "s2", "na')  # a kill within a line
    second = Teller(lambda text: text[-3:])
    assert ask(second, samples, tmp_path / "killed") == expected
    assert len(first.prompts) == 2
    assert len(second.prompts) == 4
    assert len(path.read_text().splitlines()) == 1 + 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": "another"}, "other model"),
        ({"limit": 3}, "other limit"),
        ({"digest": "more data"}, "other data_sha256"),
    ],
)
def test_answers_of_another_model_data_or_settings_are_refused(tmp_path, change, message):
    ask(Teller(str), [sample(0)], tmp_path)
    settings = SuiteSettings(data="elsewhere", limit=change.get("limit"))
    asker = Asker(Teller(str, identity=change.get("identity", "teller")), tokenizer(), settings)
    with pytest.raises(RunError, match=message):
        asker.log(tmp_path, "made", change.get("digest", "data"))


def test_the_place_of_the_data_does_not_matter(tmp_path):
    ask(Teller(str), [sample(0)], tmp_path)
    asker = Asker(Teller(str), tokenizer(), SuiteSettings(data="elsewhere"))
    assert len(asker.log(tmp_path, "made", "data").trials) == 1


def test_no_samples_or_two_of_one_id_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"made-up: holds no sample"):
        ask(Teller(str), [], tmp_path / "a")
    with pytest.raises(DataError, match=r"two samples have the id 's1'"):
        ask(Teller(str), [sample(1), sample(1)], tmp_path / "b")


def test_a_template_without_system_messages_is_named():
    made = train_tokenizer()
    made.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    asker = Asker(Teller(str), made, SETTINGS)
    asker.tokens(sample(0))
    with pytest.raises(ModelError, match=r"a system and a user message"):
        asker.tokens(sample(0, system="Be brief."))


@pytest.mark.parametrize(
    "text", ["{{ 'nothing' }}", "{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}"]
)
def test_a_template_that_does_not_write_the_prompt_once_is_refused(text):
    made = train_tokenizer()
    made.chat_template = text
    with pytest.raises(ModelError, match=r"does not write the user's message once"):
        Asker(Teller(str), made, SETTINGS).tokens(sample(0))


def test_scores_come_with_n_and_interval():
    rows = [{"score": 1.0, "a": "x"}] * 3 + [{"score": 0.0, "a": "y"}] * 2
    low, high = wilson_interval(3, 5)
    assert accuracy(rows) == {"n": 5, "correct": 3, "mean": 0.6, "low": low, "high": high}
    values = np.random.default_rng(0).random(200)
    found = mean_score([{"score": value} for value in values])
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(
        2 * 1.96 * values.std() / np.sqrt(200), rel=0.1
    )
    assert list(found) == ["n", "mean", "low", "high"]
    assert {key: len(each) for key, each in grouped(rows, "a", "score").items()} == {
        ("x", 1.0): 3,
        ("y", 0.0): 2,
    }


def test_what_a_reader_must_know_is_counted():
    texts = ["<think> a", "<think>a</think> 7", "7", "<think>a</think><think>b"]
    rows = [{"prediction": text, "was_cut": number == 2} for number, text in enumerate(texts)]
    assert counts(rows) == {"num_samples": 4, "num_cut": 1, "num_unclosed_think": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"limit": 0}, r"limit is 0"), ({"max_prompt_tokens": 1}, r"max_prompt_tokens is 1")],
)
def test_settings_that_leave_nothing(change, message):
    with pytest.raises(RecipeError, match=message):
        SuiteSettings(data="x", **change)


def test_the_mean_of_means_weighs_groups_alike():
    groups = [[{"score": 1.0}] * 2, [{"score": 0.0}, {"score": 0.5}] * 3]
    found = mean_of_means(groups)
    assert (found["n"], found["mean"]) == (8, 0.625)
    assert 0.5 <= found["low"] < 0.625 < found["high"] <= 0.75
