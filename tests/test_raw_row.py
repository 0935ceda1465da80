"""Rows as found: values of JSON and why there is none, lines, words for messages."""

import io

import pytest

from skipalign import raw_row
from skipalign.raw_row import Place, RowError, numbered_lines, parse_json, shown


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1', "not_json"),
        (b"[" * 5000, "not_json"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b'{"a": 1, "b": {"c": 2, "c": 3}}', "duplicate_key"),
        (b"[" + b"1," * 2**20 + b"1]", "too_many_values"),
        (b"9" * 5000, "not_json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_value_is_told_by_its_reason(raw: bytes, reason: str):
    with pytest.raises(RowError) as found:
        parse_json(raw)
    assert found.value.args[0] == reason


def test_commas_inside_texts_are_no_values():
    text = "," * 2**20
    assert parse_json(f'["{text}"]'.encode()) == [text]


@pytest.mark.parametrize("chunk", [1, 3, 2**16])
def test_lines_are_numbered_and_cut_past_the_limit(monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(raw_row, "CHUNK", chunk)
    data = b"\xef\xbb\xbfone\r\n\n" + b"x" * 99 + b"\nlast"
    found = list(numbered_lines(io.BytesIO(data), 10))
    assert found == [(1, b"one\r\n"), (2, b"\n"), (3, b"x" * 15), (4, b"last")]


def test_values_and_places_are_shown_short():
    shorts = [shown(value) for value in (None, [1], {"a": 1}, "x" * 99, 10**90)]
    assert shorts[:3] == ["null", "a list", "an object"]
    assert max(map(len, shorts)) <= 70
    assert str(Place("a.json", 3, element=2)) == "a.json line 3 element 2"
