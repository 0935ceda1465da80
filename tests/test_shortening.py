"""shortening.py: which messages are kept, and that answers are never cut."""

from collections import Counter

import pytest

from made_tokenizers import SHAPES, conversation, tokenizer
from skipalign.shortening import latest, shortened, too_long
from skipalign.template import Template
from skipalign.tokens import DataTokenizer, DropError

SYSTEM = ("system", "be brief")


def messages_of(*turns):
    return conversation(*turns).messages


def read(messages):
    """Return a conversation as the template renders it, and its tokens."""
    fast = tokenizer("chatml")
    texts = DataTokenizer(fast)
    rendered = Template(fast, texts, SHAPES["chatml"].kwargs or {}).locate(messages)
    return rendered, texts.tokenize([rendered.text])[0]


def chat(num_turns):
    turns = [(("user", f"question {n}"), ("assistant", f"answer {n}")) for n in range(num_turns)]
    return messages_of(SYSTEM, *(message for turn in turns for message in turn))


@pytest.mark.parametrize(("most", "gone"), [(9, 0), (8, 1), (7, 1), (6, 2), (3, 3)])
def test_the_latest_turns_are_kept_whole_with_the_systems_message(most, gone):
    messages = chat(4)
    assert latest(messages, most) == ((messages[0], *messages[1 + 2 * gone :]), gone)


def test_a_last_turn_of_too_many_messages_is_dropped():
    with pytest.raises(DropError, match="over 2 messages") as error:
        latest(chat(4), 2)
    assert error.value.reason == "too_many_messages"


@pytest.mark.parametrize("turns_of_excess", [1, 2, 3])
def test_early_turns_go_and_no_more_than_are_too_many(turns_of_excess):
    messages = chat(4)
    whole, fewer = (read(each)[1] for each in (messages, chat(4 - turns_of_excess)))
    notes = Counter()
    kept = shortened(*read(messages), len(whole) - len(fewer), notes)
    assert kept == (messages[0], *messages[1 + 2 * turns_of_excess :])
    assert notes == {"early_turns_dropped": turns_of_excess}


def test_the_last_turn_loses_the_middle_of_its_question_alone():
    question = " ".join(f"word{n}" for n in range(50))
    messages = messages_of(SYSTEM, ("user", question), ("assistant", "The answer."))
    notes = Counter()
    kept = shortened(*read(messages), 40, notes)
    assert (kept[0], kept[2]) == (messages[0], messages[2])
    assert len(kept[1].content) < len(question)
    half = len(kept[1].content) // 2 - 8
    assert question.startswith(kept[1].content[:half])
    assert question.endswith(kept[1].content[-half:])
    assert notes == {"middle_cut": 1}


def test_an_answer_is_no_place_to_cut():
    rendered, tokens = read(messages_of(("user", "Which?"), ("assistant", "the fox " * 60)))
    with pytest.raises(DropError, match="only early turns and the middle of user messages"):
        shortened(rendered, tokens, 40, Counter())
    assert too_long(tokens, 9).reason == "too_long"
