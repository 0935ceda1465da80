"""The template's text, and where messages and answers lie in it."""

import pytest

from made_tokenizers import SHAPES, conversation, template, tokenizer
from skipalign.conversation import Message
from skipalign.template import NotPrefixError, Template
from skipalign.tokens import DataTokenizer, DropError

TURNS = conversation(
    ("user", "  What is\nthe capital? "),
    ("assistant", "Paris user"),
    ("user", "user"),
    ("assistant", " assistant\n"),
).messages


def made(shape: str, text: str | None = None) -> Template:
    fast = tokenizer(shape)
    fast.chat_template = text or fast.chat_template
    return Template(fast, DataTokenizer(fast), SHAPES[shape].kwargs or {})


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if not shape.startswith("qwen3")])
def test_blocks_are_gapless_and_contents_are_found_in_order(shape):
    rendered = made(shape).locate(TURNS)
    starts = [block.start for block in rendered.blocks]
    assert starts == [0, *(block.stop for block in rendered.blocks[:-1])]
    assert rendered.blocks[-1].stop == len(rendered.text)
    for block, message in zip(rendered.blocks, TURNS, strict=True):
        assert block.start <= block.content[0] <= block.content[1] <= block.stop
        assert block.data
        # The words of the template itself stand in the contents: they are not taken for them.
        assert rendered.text[slice(*block.data)] == message.content.strip()
        assert bool(block.answer) == (block.role == "assistant")


def test_the_border_between_messages_is_where_the_prefix_ends():
    rendered = made("chatml").locate(TURNS)
    headers = [rendered.text[block.start : block.content[0]] for block in rendered.blocks]
    assert [header.strip() for header in headers] == [
        f"<|im_start|>{message.role}" for message in TURNS
    ]


def test_thinking_templates_are_no_prefix_of_themselves():
    with pytest.raises(NotPrefixError):
        made("qwen3").locate(TURNS)
    rendered = made("qwen3").locate(TURNS, last_only=True)
    assert [bool(block.answer) for block in rendered.blocks] == [False, False, False, True]


def test_last_only_trains_the_last_answer_alone():
    rendered = made("chatml").locate(TURNS, last_only=True)
    assert [bool(block.answer) for block in rendered.blocks] == [False, False, False, True]


def test_any_error_of_a_template_is_a_refusal():
    for text in (
        "{{ messages[9]['content'] | trim + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ raise_exception('no') }}",
    ):
        with pytest.raises(DropError) as error:
            made("chatml", text).locate(TURNS)
        assert error.value.reason == "template_refused"


@pytest.mark.parametrize("content", ["a\ufdd0\ufdd6\ufdd2b", "\ufdef"])
def test_contents_that_hold_our_marks_are_refused(content):
    with pytest.raises(DropError) as error:
        made("chatml").locate((Message("user", content), TURNS[1]))
    assert error.value.reason == "content_not_found"


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].content }}",
        "{% for m in messages[::-1] %}{{ m.role + m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role + m.content[:4] }}{% endfor %}",
        "{% for m in messages %}{{ m.role + m.content | tojson(ensure_ascii=true) }}{% endfor %}",
    ],
)
def test_what_cannot_be_found_is_refused_and_not_searched_for(text):
    with pytest.raises(DropError) as error:
        made("chatml", text).locate(TURNS)
    assert error.value.reason in ("content_not_found", "not_a_prefix")


def test_a_named_template_is_taken_from_several():
    fast = tokenizer("chatml")
    fast.chat_template = {"default": template("chatml"), "tool_use": "{{ 1 / 0 }}"}
    found = Template(fast, DataTokenizer(fast), {})
    assert (found.name, found.text) == ("tokenizer", template("chatml"))
