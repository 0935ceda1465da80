"""Every row yields exactly one item, with its place; nothing else stops a run."""

import json
from collections import Counter
from pathlib import Path

import pytest

from made_rows import chat, lines, messages, pair, read, roles_and_texts, sharegpt, wrote
from skipalign.conversation import ROLES, SHAPES, Conversation, Rejection, read_conversations
from skipalign.errors import DataError, RecipeError

INSTRUCTIONS = Path(__file__).parents[1].parent / "shared/data/instructions"
needs_data = pytest.mark.skipif(not INSTRUCTIONS.is_dir(), reason=f"{INSTRUCTIONS} is absent")


def only(tmp_path, row, **options):
    """The item of `row`, read before a row that is good in every shape."""
    good = {**chat("user", "assistant"), **pair(0), "text": "x", "instruction": "x", "output": "x"}
    good["conversations"] = good["messages"]
    first, second = read(wrote(tmp_path, "one.jsonl", lines(row, good)), **options)
    assert isinstance(second, Conversation)
    return first


# --- shapes

SYSTEM, USER, ANSWER, TOOL = ("system", "s"), ("user", "q"), ("assistant", "a"), ("tool", "t")
LIST = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
PROMPT, COMPLETION = messages(SYSTEM, USER)["messages"], messages(ANSWER)["messages"]
SHAPE_ROWS = [
    ("messages", messages(SYSTEM, USER, ANSWER, USER, ANSWER), [SYSTEM, *[USER, ANSWER] * 2]),
    ("messages", messages(USER, ANSWER, TOOL, TOOL, ANSWER), [USER, ANSWER, TOOL, TOOL, ANSWER]),
    ("messages", messages(("user", LIST), ANSWER), [("user", "ab"), ANSWER]),
    ("messages", {"system": "s", **messages(USER, ANSWER)}, [SYSTEM, USER, ANSWER]),
    ("messages", {"system": "x", **messages(SYSTEM, USER, ANSWER)}, [SYSTEM, USER, ANSWER]),
    ("sharegpt", sharegpt(SYSTEM, ("human", "q"), ("gpt", "a")), [SYSTEM, USER, ANSWER]),
    (
        "sharegpt",
        sharegpt(("human", "q"), ("function_call", "c"), ("observation", ""), ("gpt", "a")),
        [USER, ("assistant", "c"), ("tool", ""), ANSWER],
    ),
    ("sharegpt", sharegpt(("user", "q"), ("model", "a"), system="s"), [SYSTEM, USER, ANSWER]),
    (
        "alpaca",
        {"instruction": "do", "input": "it ", "output": "a", "text": "rendered"},
        [("user", "do\n\nit "), ANSWER],
    ),
    ("alpaca", {"instruction": "q", "input": " ", "response": "a"}, [USER, ANSWER]),
    ("alpaca", {"instruction": "", "input": "q", "response": "a"}, [USER, ANSWER]),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}, [USER, ANSWER]),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, [USER, ANSWER]),
    ("prompt_completion", {"prompt": PROMPT, "completion": COMPLETION}, [SYSTEM, USER, ANSWER]),
    ("prompt_completion", {"prompt": PROMPT, "completion": "a"}, [SYSTEM, USER, ANSWER]),
    ("text", {"text": " kept as it is\n"}, [("document", " kept as it is\n")]),
]


@pytest.mark.parametrize(("shape", "row", "expected"), SHAPE_ROWS)
@pytest.mark.parametrize("named", [False, True])
def test_each_shape_is_recognised_or_named(tmp_path, shape, row, expected, named):
    found = roles_and_texts(only(tmp_path, row, shape=shape if named else None))
    assert found == expected
    assert {role for role, _ in found} <= set(ROLES)


def test_a_named_shape_wins_over_the_keys(tmp_path):
    row = {**chat("user", "assistant"), "text": "plain"}
    assert roles_and_texts(only(tmp_path, row, shape="text")) == [("document", "plain")]
    assert len(roles_and_texts(only(tmp_path, row))) == 2


def test_an_unknown_shape_name_lists_the_known_ones(tmp_path):
    with pytest.raises(RecipeError, match="'chat'; it must be one of messages, sharegpt, alpaca"):
        read_conversations(str(wrote(tmp_path, "a.jsonl", lines(pair(1)))), name="x", shape="chat")
    assert list(SHAPES) == ["messages", "sharegpt", "alpaca", "prompt_completion", "text"]


# --- bad rows


BAD_ROWS = [
    (b"{", "not_json", "at character 2"),
    (b'{"text": "a"} x', "not_json", "Extra data at character 15"),
    (b'{"text": ' + b"9" * 5000 + b"}", "not_json", "integer string conversion"),
    (b"[" * 100_000, "not_json", "nested too deeply"),
    (b'["text"]', "not_object", "the row is a list; one JSON object a line"),
    (b"NaN", "not_object", "nan"),
    (b'{"text": NaN}', "content_not_text", "'text' is nan"),
    (b'{"text": "a", "text": "b"}', "duplicate_key", "'text', 'text'"),
    (b'{"text": "\xff"}', "not_utf8", "byte 11 of the row is 0xff"),
    (b'{"text": "ab\\ud800"}', "lone_surrogate", "message 1 has '\\ud800' at character 3"),
    ({}, "unknown_shape", "its keys are none; one of messages, conversations"),
    ({"id": 1, "prompt": "q"}, "unknown_shape", "its keys are 'id', 'prompt';"),
    ({"instruction": "do"}, "missing_key", "'output' is missing or null"),
    ({"instruction": "do", "output": 5}, "content_not_text", "'output' is 5"),
    ({"text": ""}, "empty_message", "message 1, the 'document', is empty"),
    ({"messages": {}}, "no_messages", "'messages' is an object; a list is required"),
    ({"messages": "not json"}, "not_json", "not JSON"),
    (b'{"messages": "\\ud800"}', "not_utf8", "byte 1 of the row"),
    ({"messages": ["hi"]}, "no_messages", "message 1 is 'hi'"),
    ({"messages": []}, "no_answer", "none of its 0 messages"),
    (messages(USER), "no_answer", "none of its 1 messages"),
    (messages(("narrator", "x")), "wrong_role", "message 1 has the role 'narrator'"),
    (messages(("document", "x")), "wrong_role", "message 1 has the role 'document'"),
    (messages((["user"], "x")), "wrong_role", "message 1 has the role a list"),
    (messages(("x" * 999, "x")), "wrong_role", "x" * 60 + "'; it must be"),
    (messages(USER, ("assistant", " \n")), "empty_answer", "message 2, the 'assistant', is empty"),
    (messages(("user", ""), ANSWER), "empty_message", "message 1, the 'user', is empty"),
    (messages(USER, ("assistant", None)), "content_not_text", "the content of message 2 is null"),
    (
        messages(("user", [{"type": "image"}])),
        "content_not_text",
        "message 1 has a part of type 'im",
    ),
    (messages(("user", [{"type": "url", "text": "u"}])), "content_not_text", "of type 'url'; only"),
    (messages(("user", ["a"]), ANSWER), "content_not_text", "a part of type 'a'"),
    ({"prompt": "q", "completion": [5]}, "no_messages", "message 1 of 'completion' is 5"),
    (messages(USER, USER, ANSWER), "two_users", "message 2 is a second 'user' in a row"),
    (messages(ANSWER), "wrong_order", "message 1 has the role 'assistant'; the order"),
    (messages(USER, TOOL, ANSWER), "wrong_order", "message 2 has the role 'tool' after"),
    (messages(USER, ANSWER, TOOL, USER), "wrong_order", "'user' after 'tool'"),
    (messages(USER, ANSWER, SYSTEM), "system_not_first", "message 3 is a late 'system'"),
    ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "tool_calls", "message 1 calls a"),
]


@pytest.mark.parametrize(("row", "reason", "detail"), BAD_ROWS)
def test_each_bad_row_has_its_reason(tmp_path, row, reason, detail):
    item = only(tmp_path, row)
    assert isinstance(item, Rejection)
    assert item.reason == reason
    assert detail in item.detail
    assert "\n" not in item.detail
    assert len(item.row) <= 500
    str(item).encode()  # a lone surrogate in the row must not break the log
    item.row.encode()


def test_two_answers_in_a_row_read_as_the_house_says(tmp_path):
    rows = [pair(n) for n in range(16)] + [chat("user", "assistant", "assistant")]
    item = read(wrote(tmp_path, "train.jsonl", lines(*rows)))[-1]
    assert item.reason == "two_assistants"
    assert str(item).endswith(
        "train.jsonl line 17: message 3 is a second 'assistant' in a row; "
        "roles must alternate - merge the two messages"
    )
    row = {"system": "not counted as a message", **messages(USER, ANSWER, ANSWER)}
    assert "message 3 is a second" in only(tmp_path, row).detail


def test_strict_stops_at_the_first_bad_row(tmp_path):
    path = wrote(tmp_path, "a.jsonl", lines(pair(1), b"{", pair(3)))
    items = read_conversations(str(path), name="test", strict=True)
    assert isinstance(next(items), Conversation)
    with pytest.raises(DataError, match=r"a\.jsonl line 2: not JSON"):
        next(items)


def test_no_good_row_is_an_error_after_the_rejections(tmp_path):
    items = read_conversations(str(wrote(tmp_path, "a.jsonl", lines(b"{", b"}"))), name="test")
    assert [next(items).place.line, next(items).place.line] == [1, 2]
    with pytest.raises(DataError, match=r"none of its 2 rows can be used; the first is .* line 1"):
        next(items)


# --- ids


def test_an_id_is_of_the_source_the_row_number_and_the_row(tmp_path):
    path = wrote(tmp_path, "a.jsonl", lines(pair(1), pair(1), b"{", pair(2)))
    ids = [item.id for item in read(path) if isinstance(item, Conversation)]
    assert len(set(ids)) == 3
    assert all(len(bytes.fromhex(found)) == 16 for found in ids)
    copy = wrote(tmp_path, "copy.jsonl", path.read_bytes())
    assert [i.id for i in read(copy) if isinstance(i, Conversation)] == ids
    assert next(read_conversations(str(path), name="other")).id != ids[0]
    changed = wrote(tmp_path, "changed.jsonl", path.read_bytes().replace(b"answer 1", b"answer 3"))
    assert next(read_conversations(str(changed), name="test")).id != ids[0]
    changed.unlink()
    first, second = (item for item in read(tmp_path) if item.place.line == 1)  # both files
    assert first.id != second.id


# --- real files


@needs_data
def test_the_open_assistant_file_is_read_whole():
    items = read(INSTRUCTIONS / "openassistant_messages.jsonl", strict=True)
    assert len(items) == len({item.id for item in items}) == 400
    assert Counter(len(item.messages) for item in items) == {4: 298, 2: 94, 6: 8}


@needs_data
def test_the_gpteacher_array_is_read_whole():
    path = INSTRUCTIONS / "gpteacher_roleplay_simple.json"
    items = read(path, strict=True)
    assert len(items) == 1923
    for item, row in zip(items, json.loads(path.read_text()), strict=True):
        assert item.messages[1].content == row["response"]
    text = path.read_bytes().split(b"\n")
    assert all(text[item.place.line - 1].strip() == b"{" for item in items)


@needs_data
def test_the_belle_file_is_refused_with_the_reason():
    with pytest.raises(DataError, match=r"none of its 175 rows.*'output' is missing.*'instances'"):
        read(INSTRUCTIONS / "belle_zh_seed_tasks.jsonl")
