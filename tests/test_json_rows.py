"""Rows of JSON, one a line or in an array: places, and what a damaged row costs."""

import gzip
import json

import pytest

from made_rows import lines, messages, outline, pair, read, wrote
from skipalign import raw_row
from skipalign.conversation import Conversation
from skipalign.errors import DataError

# --- JSON lines


def test_lines_keep_their_numbers_past_blank_and_bad_ones(tmp_path):
    data = b"\xef\xbb\xbf" + lines(pair(1), b" \r", b"\xff\xfe", pair(4), b"", b"{\r")
    data += json.dumps(pair(7)).encode()  # no line end
    for name, content in (("a.jsonl", data), ("b.jsonl.gz", gzip.compress(data)), ("c.json", data)):
        assert outline(read(wrote(tmp_path, name, content))) == [
            (1, "answer 1"),
            (3, "not_utf8"),
            (4, "answer 4"),
            (6, "not_json"),
            (7, "answer 7"),
        ]


def test_a_cut_gz_keeps_the_rows_before(tmp_path):
    rows = [{"text": f"{n}-{n**9}"} for n in range(5000)]
    data = gzip.compress(lines(*rows))
    *good, last = read(wrote(tmp_path, "a.jsonl.gz", data[: len(data) // 2]))
    assert len(good) > 500
    assert all(isinstance(item, Conversation) for item in good)
    assert last.reason == "unreadable"
    assert "end-of-stream" in last.detail
    damaged = data[:9000] + bytes(99) + data[9099:]
    assert read(wrote(tmp_path, "a.jsonl.gz", damaged))[-1].reason == "unreadable"
    with pytest.raises(DataError, match=r"none of its 1 rows.*cannot be read on after this"):
        read(wrote(tmp_path, "b.jsonl.gz", b"no gzip at all"))


# --- JSON arrays

# layout: (indent, the array's opening, what stands between two elements, its closing)
LAYOUTS = {
    "one line": (None, "[", ", ", "]"),
    "a row a line": (None, "[\n", ",\n", "\n]\n"),
    "row by row": (None, "[", ",\n ", "]"),
    "comma first": (None, "[ ", "\n, ", "\n]"),
    "indented": (2, "[\n  ", ",\n  ", "\n]"),
    "windows": ("\t", "\ufeff[\r\n\t", ",\r\n\t", "\r\n]"),
    "flat": (0, "[\n", ",\n", "\n]"),
}
DAMAGE = {
    "a quote too many": ('"q"', '"user " 0"'),
    "two quotes too many": ('"q"', '"user "0" x"'),
    "a quote too few": ('"q"', '"q'),
    "a word": ('"q"', "q"),
    "a bracket too few": ("]", " "),
    "a brace too few": ("}", " "),
    "the wrong bracket": ("]", "}"),
    "a line end in a string": ('"q"', '"user \n 0"'),
    "a comma too few": (",", " "),
    "not UTF-8": ('"q"', '"user \xff"'),
    "a wrong escape": ('"q"', '"user \\x"'),
}


def array(layout, damage=lambda text: text):
    """Five chats in a layout, the third one's text damaged: (bytes, lines of the rows, answers)."""
    indent, opening, separator, closing = LAYOUTS[layout]
    answers = [f'answer {n} ]}}, {{"messages": [\\" \\\\ \\n' for n in range(5)]
    texts = [json.dumps(messages(("user", "q"), ("assistant", a)), indent=indent) for a in answers]
    if indent is not None:
        texts = [text.replace("\n", separator.removeprefix(",")) for text in texts]
    texts[2] = damage(texts[2])
    starts = [len(opening) + sum(len(t) + len(separator) for t in texts[:n]) for n in range(5)]
    text = opening + separator.join(texts) + closing
    data = b"\xff".join(part.encode() for part in text.split("\xff"))
    return data, [1 + text.count("\n", 0, start) for start in starts], answers


@pytest.fixture(params=[64, 2**16])
def any_chunk(monkeypatch, request):
    monkeypatch.setattr(raw_row, "CHUNK", request.param)


@pytest.mark.usefixtures("any_chunk")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_every_layout_are_read_with_their_lines(tmp_path, layout):
    data, starts, answers = array(layout)
    items = read(wrote(tmp_path, "a.json", data))
    assert outline(items) == list(zip(starts, answers, strict=True))
    assert [item.place.element for item in items] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("any_chunk")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damaged_element_costs_itself_alone(tmp_path, layout, damage):
    def damaged(text):
        old, new = DAMAGE[damage]
        head, _, tail = text.rpartition(old) if old in "]}" else text.partition(old)
        return head + new + tail

    data, starts, answers = array(layout, damaged)
    items = read(wrote(tmp_path, "a.json", data))
    assert items[2].reason in ("not_json", "not_utf8")
    assert '"messages"' in items[2].row
    assert "answer 3" not in items[2].row
    answers[2] = items[2].reason
    assert outline(items) == list(zip(starts, answers, strict=True))


@pytest.mark.parametrize("stray", ["]", "[", "}", "],", "x y z"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stray_bracket_between_elements_costs_no_later_one(tmp_path, layout, stray):
    data, _, answers = array(layout, lambda text: text + stray)
    found = outline(read(wrote(tmp_path, "a.json", data)))
    assert {*answers[:3], answers[4]} <= {answer for _, answer in found}
    assert len(found) <= 7


def test_commas_too_many_or_too_few_between_elements_lose_nothing(tmp_path):
    one, two, three = (json.dumps(pair(n)) for n in range(3))
    path = wrote(tmp_path, "a.json", f"[{one} {two},, {three},]")
    assert outline(read(path)) == [(1, "answer 0"), (1, "answer 1"), (1, "answer 2")]


def test_elements_that_are_no_objects_are_rows_too(tmp_path):
    path = wrote(
        tmp_path, "a.json", '[{"text": ""}, 1, "a]", null, [[]], nul, {"text": "b"}, -1.5e3]'
    )
    reasons = ["empty_message", *["not_object"] * 4, "not_json", "b", "not_object"]
    assert [reason for _, reason in outline(read(path))] == reasons


@pytest.mark.parametrize(
    ("end", "reason", "detail"),
    [
        ("", "cut_off", "not closed"),
        (", ", "cut_off", "not closed"),
        (', {"prompt": "q', "not_json", "byte 14 on"),
        (', {"prompt": "q"', "not_json", "so the rest is not read"),
        ("] x", "not_json", "byte 1 on"),
        (", [", "not_json", "so the rest is not read"),
    ],
)
def test_a_damaged_end_is_one_rejection(tmp_path, end, reason, detail):
    path = wrote(tmp_path, "a.json", "[" + json.dumps(pair(0)) + ",\n" + json.dumps(pair(1)) + end)
    *good, last = read(path)
    assert outline(good) == [(1, "answer 0"), (2, "answer 1")]
    assert (last.reason, last.place.line) == (reason, 2)
    assert detail in last.detail


def test_rows_that_begin_with_different_keys_are_told_apart_by_their_indentation(tmp_path):
    rows = [json.dumps({f"key {n}": n, "text": f"a{n}"}) for n in range(4)]
    rows[1] = rows[1].replace('"a1"', "a1")
    found = outline(read(wrote(tmp_path, "a.json", "[\n" + ",\n".join(rows) + "\n]")))
    assert found == [(2, "a0"), (3, "not_json"), (4, "a2"), (5, "a3")]


def test_small_and_deep_elements_are_rejected_for_what_they_are(tmp_path):
    deep = '{"text": "deep", "x": ' + "[" * 100 + "]" * 100 + "}"
    rows = ['{"text": "a"}', '{"text": b}', deep, '{"text": "c"}']
    path = wrote(tmp_path, "a.json", f"[{', '.join(rows)}]")
    for limit, reason in ((1000, "not_json"), (40, "too_large")):
        found = [name for _, name in outline(read(path, max_row_bytes=limit))]
        assert found == ["a", "not_json", reason, "c"]
    path = wrote(tmp_path, "b.json", f"[{rows[0]}, {rows[1]}{' ' * 100}")
    assert [name for _, name in outline(read(path, max_row_bytes=40))] == ["a", "not_json"]


def test_where_no_later_element_can_be_found_the_rest_is_one_rejection(tmp_path):
    rows = [json.dumps(pair(n)) for n in range(9)]
    rows[1] = rows[1].replace('"prompt"', "prompt")
    rows[2:] = [row.replace('"prompt"', '"question"') for row in rows[2:]]
    good, rest = read(wrote(tmp_path, "a.json", f"[{', '.join(rows)}]"))
    assert isinstance(good, Conversation)
    assert "no later element can be told apart" in rest.detail
