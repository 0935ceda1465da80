"""prompts.py: an exact length, what training would tokenise, needles where they belong."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fixtures_eval import TEMPLATE, WORDS, chinese_prose, prose, train_tokenizer, write_haystack
from skipalign import tiny
from skipalign.errors import ModelError, RecipeError
from skipalign.evaluation.needle import NeedleSettings, build_prompts
from skipalign.evaluation.prompts import PromptMaker, _placed
from skipalign.model import load_tokenizer

OLMO = Path(__file__).parents[1].parent / "shared/data/tokenizers"
PRIDE = Path(__file__).parents[1].parent / "shared/data/haystack/pride_and_prejudice.txt"


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


@pytest.mark.parametrize("kind", ["bytes", "newlines"])
@pytest.mark.parametrize("distractors", [0, 3])
def test_a_chinese_prompt_has_no_spaces_and_no_half_characters(kind, distractors, tmp_path):
    """Each character is three tokens here: where one would be cut, it is left out."""
    tokenizer = train_tokenizer(kind)
    (tmp_path / "text.txt").write_text(chinese_prose(), encoding="utf-8")
    settings = NeedleSettings(
        lengths=(700, 701, 702),
        depths=4,
        trials=4,
        language="zh",
        haystack=str(tmp_path),
        distractors=distractors,
    )
    lengths = set()
    for prompt in build_prompts(tokenizer, settings):
        lengths.add(prompt.context_length - len(prompt.ids))
        text = tokenizer.decode(prompt.ids)
        content = text.removeprefix("<s>").split("<|user|>\n")[1].split("<|end|>")[0]
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        assert list(prompt.ids) == rendered
        passage, _, question = content.partition("\n\n")
        assert question == f"{prompt.key}的秘密数字是多少？只回答这个数字。"
        assert not re.search(r"\s|�", passage)
        needle = f"{prompt.key}的秘密数字是{prompt.value}。"
        before, found, after = passage.partition(needle)
        assert found
        assert re.search(r"(^|[。！？]”?)$", before) or not after
        assert len(re.findall(r"的秘密数字是\d{7}。", passage)) == 1 + distractors
        start = round(prompt.realised_depth * len(prompt.ids))
        assert tokenizer.decode(prompt.ids[start:]).startswith(needle)
    assert lengths == {0, 1, 2}


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
    settings = NeedleSettings(
        lengths=(300,), depths=6, trials=5, haystack=str(tmp_path), nested=False
    )
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


@pytest.mark.parametrize("kind", ["bytes", "unigram", "newlines"])
def test_the_question_may_stand_first(kind, haystack):
    tokenizer = train_tokenizer(kind)
    settings = NeedleSettings(
        lengths=(230, 700), depths=4, trials=5, haystack=haystack, distractors=2
    )
    first = replace(settings, question_first=True)
    pairs = zip(build_prompts(tokenizer, settings), build_prompts(tokenizer, first), strict=True)
    for last, prompt in pairs:
        assert len(prompt.ids) == prompt.context_length
        text = tokenizer.decode(prompt.ids)
        question = f"What is the secret number of {prompt.key}? Answer with the number alone.\n\n"
        assert text.replace("<|user|> ", "<|user|>").startswith(f"<s><|user|>\n{question}")
        assert text.count("What is the secret") == 1
        assert f"The secret number of {prompt.key} is {prompt.value}." in text
        assert (prompt.key, prompt.value) == (last.key, last.value)
        assert not text.split("<|end|>")[0].endswith("\n")  # no separator after the passage
    maker = PromptMaker(tokenizer, first, question_first=True)
    hidden = first.draw(np.random.default_rng(0), 230)
    made = maker.make(230, 0.5, hidden, np.random.default_rng(0))
    assert tokenizer.decode(made.ids[made.question_start :]).lstrip().startswith(hidden.question)
    assert made.needle_start > made.question_start


def test_all_needles_and_links_are_in_the_text(tokenizer, haystack):
    settings = NeedleSettings(
        lengths=(600,),
        depths=(0.0, 1.0),
        trials=10,
        haystack=haystack,
        num_needles=2,
        link="{key} met {other}.",
        distractors=1,
    )
    for prompt in build_prompts(tokenizer, settings):
        text = tokenizer.decode(prompt.ids)
        assert len(prompt.ids) == 600
        came = dict(re.findall(r"The secret number of (\w+) is (\d+)\.", text))
        met = dict(re.findall(r"(\w+) met (\w+)\.", text))
        assert tuple(came[met[key]] for key in prompt.key.split(" and ")) == prompt.values
        assert len(came) == len(met) == 3
        place = text.index(f"is {prompt.values[0]}.") / len(text)
        assert place < 0.2 if prompt.depth == 0 else place > 0.6


# Prompts of recorded results must stay what they were: these are digests of whole grids, made
# with the packaged tokenizer before the settings after `distractors` existed.
TINY = {"needle": "{key} {value} came.", "question": "Who is {key}?", "separator": " "}
RECORDED = {
    "ef8121619e1ecc93": {"trials": 2},
    "fec4e98350b2ce99": {
        **TINY,
        "trials": {200: 2, 700: 1},
        "seed": 4,
        "distractors": 4,
        "keys": ("Ada", "Ben", "Cora", "Dan", "Eve"),
        "values": ("Fox", "Gray", "Hale", "Irwin", "Kemp", "Lake"),
    },
}


@pytest.mark.parametrize("recorded", RECORDED)
def test_prompts_are_those_of_recorded_results(recorded):
    tokenizer = load_tokenizer(str(tiny.BASE))
    digest = hashlib.sha256()
    settings = NeedleSettings(lengths=(200, 700), depths=3, nested=False, **RECORDED[recorded])
    for prompt in build_prompts(tokenizer, settings):
        digest.update(prompt.ids.astype("<i4").tobytes())
        digest.update(f"{prompt.key} {prompt.value} {prompt.realised_depth:.9f}".encode())
    assert digest.hexdigest()[:16] == recorded
