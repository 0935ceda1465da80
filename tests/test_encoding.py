"""Conversations become exactly the tokens that inference sees, and only answers are trained."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from made_tokenizers import SHAPES, conversation, dicts, template, tokenizer
from skipalign.encoding import (
    DEFAULT_TEMPLATE,
    DEFAULT_TEMPLATE_NAME,
    IGNORE_INDEX,
    Encoder,
    Example,
)
from skipalign.errors import ModelError, RecipeError

SYSTEM = ("system", "Be brief.")
TURNS = (
    ("user", "What is the capital of France?\nTell me. Now!"),
    ("assistant", "Paris is the capital. It is a city."),
    ("user", "And  the answer? 答案是什么"),
    ("assistant", "Under the stone!\n- one\n- two"),
)
KINDS = ("byte_level", "metaspace")
SPLIT = ("qwen3", "qwen3-off")


def made(shape: str, kind: str = "byte_level", max_tokens: int = 4096):
    fast = tokenizer(shape, kind)
    kwargs = SHAPES[shape].kwargs
    return fast, Encoder(fast, max_tokens=max_tokens, template_kwargs=kwargs)


def rendered(fast, shape: str, turns) -> list[int]:
    kwargs = SHAPES[shape].kwargs or {}
    return fast.apply_chat_template(dicts(conversation(*turns)), return_dict=False, **kwargs)


def check(example: Example) -> None:
    """Hold an example to what every example must be."""
    length = len(example.input_ids)
    assert example.input_ids.dtype == example.labels.dtype == example.breaks.dtype == np.int32
    assert example.labels.shape == (length,)
    borders = [0, *(segment.stop for segment in example.segments)]
    assert [segment.start for segment in example.segments] == borders[:-1]
    assert borders[-1] == length
    inside = np.zeros(length, bool)
    may_train = np.zeros(length, bool)
    for segment in example.segments:
        assert segment.start < segment.stop
        assert segment.start <= segment.content_start <= segment.content_stop <= segment.stop
        inside[segment.content_start + 1 : segment.content_stop] = True
        may_train[segment.start : segment.stop] = segment.role in ("assistant", "document")
    trained = example.labels != IGNORE_INDEX
    assert (example.labels[trained] == example.input_ids[trained]).all()
    assert not (trained & ~may_train).any()
    assert inside[example.breaks].all()
    assert (np.diff(example.breaks) > 0).all()


def runs(example: Example) -> list[np.ndarray]:
    """Return the ids of every run of trained tokens."""
    edges = np.flatnonzero(
        np.diff(example.labels != IGNORE_INDEX, prepend=False, append=False).astype(int)
    )
    return [example.labels[a:b] for a, b in zip(edges[0::2], edges[1::2], strict=True)]


def text_of(fast, example: Example, role: str) -> list[str]:
    return [
        fast.decode(example.input_ids[segment.content_start : segment.content_stop])
        for segment in example.segments
        if segment.role == role
    ]


def encoded(encoder: Encoder, *turns):
    result = encoder.encode(conversation(*turns))
    for example in result.examples:
        check(example)
    assert (result.dropped is None) == bool(result.examples)
    return result


def only(encoder: Encoder, *turns) -> Example:
    result = encoded(encoder, *turns)
    assert len(result.examples) == 1, result
    return result.examples[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_system", [False, True])
def test_ids_are_those_of_apply_chat_template(shape, kind, with_system):
    fast, encoder = made(shape, kind)
    turns = (SYSTEM, *TURNS) if with_system and SHAPES[shape].system else TURNS
    result = encoded(encoder, *turns)
    answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
    wanted = [turns[: i + 1] for i in answers] if shape in SPLIT else [turns]
    assert [example.input_ids.tolist() for example in result.examples] == [
        rendered(fast, shape, part) for part in wanted
    ]
    assert result.notes == ({"split_per_turn": 1} if shape in SPLIT else {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_and_their_end_of_turn_are_trained_and_nothing_else(shape, kind):
    fast, encoder = made(shape, kind)
    result = encoded(encoder, *TURNS)
    end = fast.convert_tokens_to_ids(SHAPES[shape].end_of_turn)
    trained = [run for example in result.examples for run in runs(example)]
    thought = "<think></think>" if shape == "qwen3" else ""
    assert [re.sub(r"\s", "", fast.decode(run[:-1])) for run in trained] == [
        re.sub(r"\s", "", thought + answer) for role, answer in TURNS if role == "assistant"
    ]
    assert [run[-1] for run in trained] == [end, end]


@pytest.mark.parametrize("shape", SHAPES)
def test_one_segment_for_each_message_with_its_content_inside(shape):
    fast, encoder = made(shape)
    turns = (SYSTEM, *TURNS) if SHAPES[shape].system else TURNS
    example = encoded(encoder, *turns).examples[-1]
    assert [segment.role for segment in example.segments] == [role for role, _ in turns]
    for segment, (_, content) in zip(example.segments, turns, strict=True):
        shown = fast.decode(example.input_ids[segment.content_start : segment.content_stop])
        # A token that began in the header may have taken the first word with it.
        assert content.endswith(shown.strip())
        assert len(shown.strip()) > len(content) - 6
        header = fast.decode(example.input_ids[segment.start : segment.content_start])
        assert content not in header


def test_header_of_a_later_turn_belongs_to_it_where_no_prefix_tells():
    fast, encoder = made("qwen3")
    example = encoded(encoder, *TURNS).examples[1]
    headers = [fast.decode(example.input_ids[s.start : s.content_start]) for s in example.segments]
    assert headers[2] == "<|im_start|>user\n"


def test_a_default_system_prompt_is_header_of_the_first_message():
    fast, encoder = made("qwen25")
    first = only(encoder, *TURNS).segments[0]
    ids = only(encoder, *TURNS).input_ids
    assert first.role == "user"
    assert "You are Qwen" in fast.decode(ids[first.start : first.content_start])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_special_tokens_in_contents_are_text(shape, kind):
    fast, encoder = made(shape, kind)
    end, eos = SHAPES[shape].end_of_turn, fast.eos_token
    start = (fast.bos_token or "<|im_start|>") + "user\n"
    turns = [
        ("user", f"Say {end}{start}I am{end}"),
        ("assistant", f"{end} is a token. {eos}{start} So."),
        ("user", f"{start}  {end}"),
        ("assistant", f"Under{eos}"),
    ]
    plain = [("user", "Say I am"), ("assistant", "is a token"), ("user", "a"), ("assistant", "b")]
    dirty, clean = encoded(encoder, *turns), encoded(encoder, *plain)
    special = [i for i, token in fast.added_tokens_decoder.items() if token.special]
    for found, wanted in zip(dirty.examples, clean.examples, strict=True):
        steering = found.input_ids[np.isin(found.input_ids, special)]
        assert steering.tolist() == wanted.input_ids[np.isin(wanted.input_ids, special)].tolist()
        assert len(runs(found)) == len(runs(wanted))
        for run in runs(found):
            assert run[-1] == fast.convert_tokens_to_ids(end)
            assert not np.isin(run[:-1], special).any()
    shown = fast.decode(dirty.examples[-1].input_ids)
    assert all(content.strip() in shown for _, content in turns)
    assert dirty.notes["special_text"] >= 9
    assert "special_text" not in clean.notes


def test_special_text_is_tokenised_as_the_same_characters_elsewhere():
    fast, encoder = made("chatml", "metaspace")
    example = only(encoder, ("user", "the <|im_end|> is"), ("assistant", "is <|im_start|>the"))
    backend = fast.backend_tokenizer
    backend.encode_special_tokens = True
    wanted = backend.encode("the <|im_end|> is", add_special_tokens=False).ids
    contents = [
        example.input_ids[s.content_start : s.content_stop].tolist() for s in example.segments
    ]
    # The tokenizer alone would put a space before the first word.
    assert fast.decode(contents[0]) == fast.decode(wanted).strip()
    assert fast.decode(example.input_ids) == fast.apply_chat_template(
        dicts(conversation(("user", "the <|im_end|> is"), ("assistant", "is <|im_start|>the"))),
        tokenize=False,
    )


def test_a_control_token_without_the_special_flag_is_neutralised_too():
    fast = tokenizer("chatml")
    backend = fast.backend_tokenizer
    backend.add_tokens(["<|turn|>", "<note>"])
    fast.chat_template = template("chatml").replace("<|im_start|>", "<|turn|>")
    encoder = Encoder(fast, max_tokens=99)
    result = encoded(encoder, ("user", "<|turn|>user <note>"), ("assistant", "<note>Yes"))
    ids = result.examples[0].input_ids.tolist()
    assert ids.count(fast.convert_tokens_to_ids("<|turn|>")) == 2
    assert ids.count(fast.convert_tokens_to_ids("<note>")) == 2  # ordinary vocabulary
    assert result.notes["special_text"] == 1


def test_unknown_characters_and_bytes_are_not_special_text():
    fast = tokenizer("llama2", "metaspace")
    fast.add_special_tokens({"additional_special_tokens": ["<0xE2>", "<0x98>", "<0x83>"]})
    encoder = Encoder(fast, max_tokens=99)
    turns = (("user", "snow ☃ man"), ("assistant", "☃ yes"))
    result = encoded(encoder, *turns)
    assert result.notes == {}
    assert result.examples[0].input_ids.tolist() == rendered(fast, "llama2", turns)
    result = encoded(encoder, ("user", "a <0xE2> byte"), ("assistant", "☃ yes"))
    assert result.notes == {"special_text": 1}


def generation_pair(text: str):
    with_blocks, without = tokenizer("generation"), tokenizer("generation")
    with_blocks.chat_template = text
    without.chat_template = re.sub(
        r"\{%-? (end)?generation -?%\}", "{%- if true %}{%- endif %}", text
    )
    return with_blocks, without


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\\n"])
@pytest.mark.parametrize(
    "turns",
    [
        TURNS,
        (SYSTEM, *TURNS),
        TURNS[:2],
        (*TURNS, TURNS[0]),
        (TURNS[0], ("assistant", "  Paris. "), *TURNS[2:]),
    ],
)
@pytest.mark.parametrize("trim", [False, True])
def test_generation_blocks_and_rendered_prefixes_agree(end, turns, trim):
    text = template("generation")
    if "n" in end[-2:]:  # a block that holds the newline after the end of turn
        text = text.replace("<|im_end|>' }}", "<|im_end|>\\n' }}").replace("{{- '\\n' }}", "")
    with_blocks, without = generation_pair(text)
    if trim:  # offsets without the space before a word, as GPT-NeoX has them
        for fast in (with_blocks, without):
            fast.backend_tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    a = only(Encoder(with_blocks, max_tokens=999), *turns)
    b = only(Encoder(without, max_tokens=999), *turns)
    assert a.input_ids.tolist() == b.input_ids.tolist()
    assert a.labels.tolist() == b.labels.tolist()
    assert a.segments == b.segments
    assert fast_trained(with_blocks, a).count("<|im_end|>") == sum(
        r == "assistant" for r, _ in turns
    )


def fast_trained(fast, example: Example) -> str:
    return "".join(fast.decode(run) for run in runs(example))


def test_generation_blocks_say_which_answers_are_trained():
    text = template("generation").replace(
        "message['role'] == 'assistant'", "message['role'] == 'assistant' and loop.last"
    )
    fast, _ = generation_pair(text)
    result = encoded(Encoder(fast, max_tokens=999), *TURNS)
    assert [fast.decode(run) for run in runs(result.examples[0])] == [TURNS[3][1] + "<|im_end|>"]
    assert result.notes == {"answer_not_marked": 1}


def test_a_generation_block_around_a_question_is_refused():
    text = template("generation").replace("message['role'] == 'assistant'", "true")
    fast, _ = generation_pair(text)
    assert encoded(Encoder(fast, max_tokens=999), *TURNS).dropped == "generation_block"


def test_a_generation_block_around_several_messages_is_refused():
    text = (
        "{{ messages[0]['content'] }}{% generation %}{% for m in messages[1:] %}"
        "{{ m['role'] + m['content'] }}{% endfor %}{% endgeneration %}"
    )
    fast, _ = generation_pair(text)
    assert encoded(Encoder(fast, max_tokens=999), *TURNS).dropped == "generation_block"
    assert encoded(Encoder(fast, max_tokens=999), *TURNS[:2]).dropped is None


def test_messages_out_of_order_are_dropped():
    fast, _ = generation_pair(template("generation").replace("in messages", "in messages[::-1]"))
    assert encoded(Encoder(fast, max_tokens=999), *TURNS).dropped == "content_not_found"


def test_thinking_is_trained_as_inference_sees_it():
    fast, encoder = made("qwen3")
    first, last = "<think>\nFrance.\n</think>\n\nParis", "<think>\nStone.\n</think>\n\nUnder it"
    turns = (("user", "q"), ("assistant", first), ("user", "r"), ("assistant", last))
    result = encoded(encoder, *turns)
    assert [[fast.decode(run) for run in runs(e)] for e in result.examples] == [
        [first + "<|im_end|>"],
        [last + "<|im_end|>"],
    ]
    assert "France" not in fast.decode(result.examples[1].input_ids)
    assert [e.input_ids.tolist() for e in result.examples] == [
        rendered(fast, "qwen3", turns[:2]),
        rendered(fast, "qwen3", turns),
    ]
    assert len({example.id for example in result.examples}) == 2


def test_a_special_token_in_rewritten_text_is_dropped():
    _, encoder = made("qwen3")
    turns = (("user", "q"), ("assistant", "<think>\n<|im_start|>\n</think>\n\nParis"))
    assert encoded(encoder, *turns).dropped == "special_text"


def test_thinking_off_puts_the_empty_thought_into_the_prompt():
    fast, encoder = made("qwen3-off")
    example = only(encoder, *TURNS[:2])
    assert [fast.decode(run) for run in runs(example)] == [TURNS[1][1] + "<|im_end|>"]


def test_a_system_prompt_that_training_would_not_show_is_not_trained_without():
    _, encoder = made("mistral")
    result = encoded(encoder, SYSTEM, *TURNS)
    assert result.dropped == "not_a_prefix"
    assert "message 3" in result.detail


def test_a_refusal_of_the_template_is_told_in_its_words():
    _, encoder = made("gemma")
    result = encoded(encoder, SYSTEM, *TURNS)
    assert result.dropped == "template_refused"
    assert "System role not supported" in result.detail


CALL = (
    ("user", "Weather?"),
    ("assistant", "<tool_call>weather</tool_call>"),
    ("tool", 'sun "21"\n'),
    ("tool", "rain"),
    ("assistant", "Sun, then rain."),
)


@pytest.mark.parametrize("shape", ["llama31", "qwen25", "tools", "chatml"])
def test_tool_messages_keep_their_role_and_are_not_trained(shape):
    fast, encoder = made(shape)
    example = only(encoder, *CALL)
    assert [segment.role for segment in example.segments] == [role for role, _ in CALL]
    assert example.input_ids.tolist() == rendered(fast, shape, CALL)
    assert [re.sub("<[|].*", "", fast.decode(run)) for run in runs(example)] == [
        CALL[1][1],
        CALL[4][1],
    ]
    assert "rain" in text_of(fast, example, "tool")[1]
    tools = fast.decode(example.input_ids[: example.segments[0].content_start])
    assert ("<tools>" in tools) == (shape == "tools")


def test_contents_that_the_template_looks_at_are_found_all_the_same():
    fast, encoder = made("qwen3")
    result = "<tool_response>21 degrees</tool_response>"
    turns = (("user", "Weather?"), ("assistant", "call"), ("user", result), ("assistant", "Sun"))
    example = encoded(encoder, *turns).examples[-1]
    assert text_of(fast, example, "user") == ["Weather?", result]
    assert example.input_ids.tolist() == rendered(fast, "qwen3", turns)


def test_marks_that_change_the_text_are_not_believed():
    fast, encoder = with_template(
        "{% for m in messages %}{{ 'note: ' if m['content'].startswith('the') else '' }}"
        "{{ m['role'] + ' ' + m['content'] + eos_token }}{% endfor %}"
    )
    example = only(encoder, ("user", "the fox"), ("assistant", "Yes"))
    assert text_of(fast, example, "user") == [" fox"]  # " the" began in the header
    assert fast.decode(example.input_ids[:6]).startswith("note: user")


def with_template(text: str, shape: str = "chatml"):
    fast = tokenizer(shape)
    fast.chat_template = text
    return fast, Encoder(fast, max_tokens=999)


def test_a_template_that_hides_what_messages_hold_is_dropped():
    _, encoder = with_template(
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] | length | string }}{% endfor %}"
    )
    result = encoded(encoder, *TURNS)
    assert result.dropped == "content_not_found"
    _, encoder = with_template("{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}")
    assert encoded(encoder, *TURNS[:2]).dropped == "content_not_found"


def test_a_message_that_the_template_leaves_out_is_counted():
    text = template("chatml").replace("messages %}", "messages if message.role != 'system' %}", 1)
    _, encoder = with_template(text)
    result = encoded(encoder, SYSTEM, *TURNS)
    assert result.notes == {"message_left_out": 1}
    assert [s.role for s in result.examples[0].segments] == [role for role, _ in TURNS]


@pytest.mark.parametrize("shape", ["llama2", "llama31", "qwen25", "chatml"])
@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_system_message_is_all_header(shape, empty):
    fast, encoder = made(shape)
    example = only(encoder, ("system", empty), *TURNS)
    assert example.input_ids.tolist() == rendered(fast, shape, (("system", empty), *TURNS))
    for segment in example.segments:
        if segment.role == "system":
            assert segment.content_start == segment.content_stop == segment.stop


CONCATENATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_token_that_holds_a_piece_of_the_next_question_is_not_trained():
    fast, encoder = with_template(CONCATENATE)
    turns = (("user", "fox"), ("assistant", " is the cap"), ("user", "ital of"), ("assistant", "x"))
    example = only(encoder, *turns)
    assert " capital" in [fast.decode([i]) for i in example.input_ids]
    assert [fast.decode(run) for run in runs(example)] == [" is the", "x"]


def test_a_token_that_begins_in_the_header_is_not_trained_and_counted():
    fast, encoder = with_template(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    result = encoded(encoder, ("user", "fox"), ("assistant", "the answer"))
    assert [fast.decode(run) for run in runs(result.examples[0])] == [" answer<|im_end|>"]
    assert result.notes == {"merged_border": 1}


def test_an_answer_without_an_end_of_turn_is_trained_to_its_last_character():
    fast, encoder = with_template(
        "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
    )
    result = encoded(encoder, *TURNS)
    assert [fast.decode(run).strip() for run in runs(result.examples[0])] == [
        answer for role, answer in TURNS if role == "assistant"
    ]
    assert result.notes == {"no_end_of_turn": 2}


def test_no_answer_is_no_example():
    _, encoder = made("chatml")
    assert encoded(encoder, TURNS[0]).dropped == "no_trained_token"


# --- breaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["Two", "Three", "Four"]),
        ('He said "no." Then (yes.) he left', ["Then", "he left"]),
        ("Pi is 3.14 and e.g.x", []),
        ("Title\n\n  Text\nMore", ["Text", "More"]),
        ("你好。我是谁？“走吧！”他说。", ["我", "“", "他"]),
        ("真的！！好。", ["好"]),
        ("Wait… Go...\n", ["Go"]),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_breaks_are_where_sentences_begin(text, sentences, kind):
    fast, encoder = made("chatml", kind)
    for example in (
        only(encoder, ("user", "q"), ("assistant", text)),
        only(encoder, ("document", text)),
    ):
        end = example.segments[-1].content_stop
        shown = [fast.decode(example.input_ids[b:end]).strip() for b in example.breaks]
        assert len(shown) == len(sentences), shown
        for found, wanted in zip(shown, sentences, strict=True):
            assert found.startswith(wanted)


# --- longer than max_tokens ---------------------------------------------------------------------


def test_early_turns_go_first_and_no_more_than_needed():
    fast, whole = made("chatml")
    turns = tuple(
        turn
        for n in range(6)
        for turn in (("user", f"Question {n} of the fox."), ("assistant", f"Answer {n}."))
    )
    for gone in range(1, 6):
        kept = (SYSTEM, *turns[2 * gone :])
        limit = len(only(whole, *kept).input_ids)
        result = encoded(Encoder(fast, max_tokens=limit), SYSTEM, *turns)
        assert result.notes == {"early_turns_dropped": gone}
        assert result.examples[0].input_ids.tolist() == rendered(fast, "chatml", kept)
    result = encoded(Encoder(fast, max_tokens=limit - 1), SYSTEM, *turns)
    assert result.notes == {"early_turns_dropped": 5, "middle_cut": 1}


def test_the_middle_of_the_longest_question_is_cut():
    fast, _ = made("chatml")
    question = " ".join(f"word{n}" for n in range(200))
    turns = (SYSTEM, ("user", question), ("assistant", "The answer."))
    result = encoded(Encoder(fast, max_tokens=100), *turns)
    example = result.examples[0]
    assert 96 <= len(example.input_ids) <= 100
    assert result.notes == {"middle_cut": 1}
    (shown,) = text_of(fast, example, "user")
    head = len(shown) // 2 - 8
    assert question.startswith(shown[:head])
    assert question.endswith(shown[-head:])
    assert text_of(fast, example, "assistant") == ["The answer."]
    assert text_of(fast, example, "system") == [SYSTEM[1]]


def test_an_answer_is_never_cut():
    fast, _ = made("chatml")
    long = "the fox " * 60
    result = encoded(Encoder(fast, max_tokens=60), ("user", "q " * 50), ("assistant", long))
    assert result.dropped == "too_long"
    assert "max_tokens is 60" in result.detail
    # An earlier turn that would fit is no reason to train without the last answer.
    result = encoded(Encoder(fast, max_tokens=60), *TURNS[:2], ("user", "q"), ("assistant", long))
    assert result.dropped == "too_long"


def test_split_conversations_keep_the_answers_that_fit():
    fast, _ = made("qwen3")
    turns = (*TURNS[:2], ("user", "q"), ("assistant", "the fox " * 60))
    result = encoded(Encoder(fast, max_tokens=90), *turns)
    assert result.notes == {"split_per_turn": 1, "answers_dropped": 1}
    assert "max_tokens is 90" in result.detail
    assert TURNS[1][1] in fast_trained(fast, result.examples[0])


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn")), min_size=1).map(
    lambda text: text if text.strip() else "x"
)
CHATS = st.lists(st.tuples(texts, texts), min_size=1, max_size=4).map(
    lambda pairs: tuple(t for q, a in pairs for t in (("user", q), ("assistant", a)))
)
MADE = {(shape, kind): made(shape, kind) for shape in SHAPES for kind in KINDS}


@settings(deadline=None, max_examples=200)
@given(
    turns=CHATS,
    which=st.sampled_from(sorted(MADE)),
    system=st.none() | texts,
    limit=st.integers(16, 200),
)
def test_whatever_the_text_only_answers_are_trained_and_whole(turns, which, system, limit):
    fast, encoder = MADE[which]
    shape = which[0]
    if system is not None and SHAPES[shape].system:
        turns = (("system", system), *turns)
    whole = encoded(encoder, *turns)
    if whole.dropped:
        assert whole.dropped in ("special_text", "content_not_found")
        return
    if shape not in SPLIT and "special_text" not in whole.notes:
        assert whole.examples[0].input_ids.tolist() == rendered(fast, shape, turns)
    last = runs(whole.examples[-1])[-1]
    assert last[-1] == fast.convert_tokens_to_ids(SHAPES[shape].end_of_turn)
    cut = encoded(Encoder(fast, max_tokens=limit, template_kwargs=SHAPES[shape].kwargs), *turns)
    if cut.dropped:
        assert cut.dropped == "too_long"
        return
    for example in cut.examples:
        assert len(example.input_ids) <= limit
        # Answers are kept whole: what is trained was trained before.
        before = {run.tobytes() for found in whole.examples for run in runs(found)}
        assert {run.tobytes() for run in runs(example)} <= before
        if (
            system is not None
            and SHAPES[shape].system
            and system.strip() in "".join(text_of(fast, whole.examples[-1], "system"))
        ):
            assert system.strip() in "".join(text_of(fast, example, "system"))


# --- documents ----------------------------------------------------------------------------------


def test_a_document_is_text_and_its_end_all_trained():
    fast, encoder = made("chatml")
    example = only(encoder, ("document", "The fox.\nThe dog. "))
    wanted = fast("The fox.\nThe dog. ", add_special_tokens=False)["input_ids"]
    assert example.input_ids.tolist() == [*wanted, fast.eos_token_id]
    assert example.labels.tolist() == example.input_ids.tolist()
    (segment,) = example.segments
    assert (segment.role, segment.content_start, segment.content_stop) == (
        "document",
        0,
        len(wanted),
    )


def test_a_document_gets_bos_where_the_tokenizer_adds_one_and_is_split_without_loss():
    fast, _ = made("llama31")
    fast.add_bos_token = True
    text = "The fox. " * 40
    ids = only(Encoder(fast, max_tokens=4096), ("document", text)).input_ids
    assert ids[0] == fast.bos_token_id
    assert ids[-1] == fast.eos_token_id
    for limit in (3, 4, 50, len(ids) - 1, len(ids)):
        result = encoded(Encoder(fast, max_tokens=limit), ("document", text))
        assert np.concatenate([e.input_ids for e in result.examples]).tolist() == ids.tolist()
        assert all(1 < len(e.input_ids) <= limit for e in result.examples)
        pieces = len(result.examples)
        assert result.notes == ({"document_pieces": pieces} if pieces > 1 else {})
        assert len({e.id for e in result.examples}) == pieces
        assert result.examples[0].segments[0].content_start == 1


def test_a_document_holds_no_special_token_but_its_ends():
    fast, encoder = made("chatml")
    result = encoded(encoder, ("document", "<|im_end|> the <|im_start|>"))
    ids = result.examples[0].input_ids
    assert fast.decode(ids) == "<|im_end|> the <|im_start|><|im_end|>"
    assert (ids == fast.eos_token_id).nonzero()[0].tolist() == [len(ids) - 1]
    assert result.notes == {"special_text": 2}


# --- tokenizers ---------------------------------------------------------------------------------


def test_a_tokenizer_without_template_gets_the_plain_one():
    fast = tokenizer(None)
    encoder = Encoder(fast, max_tokens=999)
    assert (encoder.template_name, encoder.template) == (DEFAULT_TEMPLATE_NAME, DEFAULT_TEMPLATE)
    example = only(encoder, SYSTEM, *TURNS)
    assert example.input_ids.tolist() == fast.apply_chat_template(
        dicts(conversation(SYSTEM, *TURNS)), chat_template=encoder.template, return_dict=False
    )
    assert [fast.decode(run) for run in runs(example)] == [
        TURNS[1][1] + "<eos>",
        TURNS[3][1] + "<eos>",
    ]
    assert fast.chat_template is None
    fast.add_special_tokens({"bos_token": "<bos>"})
    fast.add_bos_token = True
    example = only(Encoder(fast, max_tokens=999), *TURNS)
    assert example.input_ids[:2].tolist().count(fast.bos_token_id) == 1


def test_many_at_once_are_as_one_by_one():
    _, encoder = made("qwen3")
    rows = [
        conversation(*TURNS),
        conversation(("document", "The fox.")),
        conversation(("user", "<|im_end|>"), ("assistant", "no")),
    ]
    for one, among in zip(map(encoder.encode, rows), encoder.encode_many(rows), strict=True):
        assert (one.dropped, one.notes) == (among.dropped, among.notes)
        for a, b in zip(one.examples, among.examples, strict=True):
            assert a.input_ids.tolist() == b.input_ids.tolist()
            assert a.labels.tolist() == b.labels.tolist()
            assert (a.segments, a.id) == (b.segments, b.id)


def test_what_cannot_be_used_is_said():
    with pytest.raises(RecipeError, match="max_tokens is 2"):
        Encoder(tokenizer("chatml"), max_tokens=2)
    with pytest.raises(RecipeError, match="template_kwargs holds tokenize"):
        Encoder(tokenizer("chatml"), max_tokens=9, template_kwargs={"tokenize": True})
    bare = tokenizer(None)
    bare.eos_token = None
    with pytest.raises(ModelError, match="neither a chat template nor an eos_token"):
        Encoder(bare, max_tokens=9)
    broken = tokenizer("chatml")
    broken.chat_template = "{% for %}"
    with pytest.raises(ModelError, match="line 1 of its chat template"):
        Encoder(broken, max_tokens=9)
    endless = tokenizer("chatml")
    endless.eos_token = None
    with pytest.raises(ModelError, match="no eos_token"):
        Encoder(endless, max_tokens=9).encode(conversation(("document", "x")))
