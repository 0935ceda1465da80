"""Records of csv: places, and what a damaged record costs."""

import csv
import io
import json

import pytest

from made_rows import chat, outline, read, roles_and_texts, wrote
from skipalign.errors import DataError

# --- csv


def test_csv_records_are_read_as_the_csv_module_writes_them(tmp_path):
    texts = ["plain", 'a "quote"', "a, b", "two\nlines", "two\r\n\r\nlines", '"', '""', " x ", "é"]
    rows = [(f"q {text}", f"a {text}") for text in texts for _ in range(2)]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        file = io.StringIO()
        writer = csv.writer(file, quoting=quoting)
        writer.writerows([("instruction", "output"), *rows])
        for data in (file.getvalue(), "\ufeff" + file.getvalue().removesuffix("\r\n")):
            items = read(wrote(tmp_path, "a.csv", data.encode()))
            found = [tuple(text for _, text in roles_and_texts(item)) for item in items]
            assert found == rows
    assert [item.place.line for item in items[:9]] == [2, 3, 4, 5, 6, 7, 8, 11, 14]


CSV_ROWS = [
    ('5" pipe,a', [(3, "not_csv")]),
    ('"he said "hi" to",a', [(3, "not_csv")]),
    ('"left open,a', [(3, "not_csv")]),
    ("one field", [(3, "wrong_columns")]),
    ("one,two,three", [(3, "wrong_columns")]),
    ("q,", [(3, "empty_answer")]),
    ("q,\xff", [(3, "not_utf8")]),
    ("\n\r\n\nq,a", [(6, "a")]),
    ('"a\nb",c,d', [(3, "wrong_columns")]),
    ('"a\n\xff",a', [(3, "not_utf8")]),
    ('"a, line\nmore ""lines\n",a', [(3, "a")]),
    ('"first "line"\nno row\nnor this\n,end",a', [(3, "not_csv")]),
    (f'"{"x" * 300}",a', [(3, "too_large")]),
    ('"' + "x y\n" * 300 + '",a', [(3, "too_large")]),
]


@pytest.mark.parametrize(("row", "expected"), CSV_ROWS)
def test_a_bad_record_costs_itself_alone(tmp_path, row, expected):
    data = f'prompt,completion\nq,"a0"\n{row}\nq,a1\nq,a2\n"q\n",a3\nq,a4\n'.encode("latin-1")
    found = outline(read(wrote(tmp_path, "a.csv", data), max_row_bytes=200))
    line = 3 + row.count("\n") + 1
    after = [(line, "a1"), (line + 1, "a2"), (line + 2, "a3"), (line + 4, "a4")]
    assert found == [(2, "a0"), *expected, *after]


def test_a_quote_open_to_the_end_costs_its_line_alone(tmp_path):
    rows = "".join(f"q,a{n}\n" for n in range(3, 50))
    found = outline(read(wrote(tmp_path, "a.csv", f'prompt,completion\n"q,a2\n{rows}one\n')))
    assert found == [(2, "not_csv"), *((n, f"a{n}") for n in range(3, 50)), (50, "wrong_columns")]


def test_prose_inside_a_damaged_record_is_never_read_as_rows(tmp_path):
    prose = "\n".join(f"line {n}" + ", and" * (n % 3) for n in range(30))
    data = f'prompt,completion\nq,good\n"a "bad" {prose}",a\n"open\n{prose}\nq,a\n'
    items = read(wrote(tmp_path, "a.csv", data + '"closes\nq,fine\n'))
    assert [text for _, text in outline(items)] == ["good", "not_csv", "not_csv", "fine"]


@pytest.mark.parametrize(
    ("header", "match"), [('"text', "header cannot be used"), ("text,text", "a key stands twice")]
)
def test_a_csv_without_a_usable_header_is_an_error(tmp_path, header, match):
    with pytest.raises(DataError, match=match):
        read(wrote(tmp_path, "a.csv", f"{header}\na,b\n"))


def test_csv_cells_may_hold_messages_as_json(tmp_path):
    file = io.StringIO()
    turns = chat("user", "assistant")["messages"]
    csv.writer(file).writerows([["id", "messages"], [1, json.dumps(turns)], [2, "[{]"]])
    items = read(wrote(tmp_path, "a.csv", file.getvalue()))
    assert outline(items) == [(2, "assistant 1"), (3, "not_json")]
