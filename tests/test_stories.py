"""Stories: text that answers nothing, conversations that tell what they ask, ids as templated."""

import re

import numpy as np
import pytest

from skipalign import tiny
from skipalign.conversation import Conversation, Message, Place
from skipalign.encoding import IGNORE_INDEX, Encoder
from skipalign.model import load_tokenizer
from skipalign.tiny.corpus import KEYS, VALUES
from skipalign.tiny.stories import TAILS, StoryLaw, StoryMaker, sentence

WINDOW = 256


@pytest.fixture(scope="module")
def prose() -> list[str]:
    rng = np.random.default_rng(0)
    return [sentence(rng) for _ in range(400)]


@pytest.fixture(scope="module")
def maker(prose: list[str]) -> StoryMaker:
    tokenizer = load_tokenizer(str(tiny.BASE))
    law = StoryLaw(max_tokens=WINDOW, num_turns=4)
    return StoryMaker(prose, lambda text: np.array(tokenizer(text)["input_ids"]), law)


def test_sentences_are_many_and_begin_and_end_as_such(prose: list[str]):
    assert len(set(prose)) > 0.9 * len(prose)
    assert all(re.fullmatch(r"[“A-Z][^{}]*[.”]", each) for each in prose)


def test_no_sentence_answers_a_question():
    rng = np.random.default_rng(1)
    words = set(re.findall(r"\w+", " ".join(sentence(rng) for _ in range(5000))))
    assert not words & {*KEYS, *VALUES}


def test_stories_ask_only_what_they_tell(maker: StoryMaker):
    densities = set()
    for seed in range(60):
        story = maker.draw(np.random.default_rng(seed))
        text = " ".join(story.sentences)
        told = re.findall(rf"(\w+) (\w+) (?:{'|'.join(TAILS)})\.", text)
        records = {key: value for key, value in told if key in KEYS}
        assert len(records) == sum(key in KEYS for key, _ in told)
        densities.add(len(records))
        assert len({question for question, _ in story.turns}) == len(story.turns)
        for question, answer in story.turns:
            found = re.fullmatch(r"Who is (\w+)\?", question)
            assert found is not None
            assert answer == f"{found[1]} {records[found[1]]}."
    assert {1, 5} <= densities  # 256 tokens over 200 and over 25 for one record
    assert max(densities) <= 10


def test_ids_are_those_of_the_template_and_fill_the_window(maker: StoryMaker):
    tokenizer = load_tokenizer(str(tiny.BASE))
    marks = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    encoder = Encoder(tokenizer, max_tokens=WINDOW)
    for seed in range(20):
        story = maker.draw(np.random.default_rng(seed))
        ids, trained = maker.encoded(story, tuple(marks))
        messages = tuple(Message(**each) for each in story.messages())
        (example,) = encoder.encode(
            Conversation(messages, Place("drawn", 1), "stories", "1")
        ).examples
        assert np.array_equal(ids, example.input_ids)
        assert np.array_equal(trained, example.labels != IGNORE_INDEX)
        assert WINDOW - 60 < len(ids) <= WINDOW


def test_a_story_is_a_pure_function_of_its_generator(maker: StoryMaker):
    one, other = (maker.draw(np.random.default_rng(7)) for _ in range(2))
    assert one == other != maker.draw(np.random.default_rng(8))
