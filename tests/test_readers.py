"""Every row of every format is found, with its place, in little memory, whatever the bytes."""

import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
import types
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import chat, lines, outline, pair, read, roles_and_texts, wrote
from skipalign import raw_row
from skipalign.conversation import Conversation, Rejection, read_conversations
from skipalign.errors import DataError

# --- parquet


def test_parquet_rows_are_counted_and_checked(tmp_path):
    rows = [{"messages": chat("user", "assistant")["messages"], "text": None} for _ in range(40)]
    rows[20]["messages"] = [{"role": "user", "content": "q"}]
    rows[30] = {"messages": None, "text": "x" * 5000}
    rows[31] = {"messages": None, "text": "short"}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    items = read(path, max_row_bytes=1000)
    assert [item.place.line for item in items] == list(range(1, 41))
    assert str(items[20]).startswith(f"{path} row 21: none of its 1 messages")
    reasons = {n: i.reason for n, i in enumerate(items) if isinstance(i, Rejection)}
    assert reasons == {20: "no_answer", 30: "too_large"}
    assert roles_and_texts(items[31]) == [("document", "short")]


def test_a_parquet_text_that_is_not_utf8_costs_its_row(tmp_path):
    raw = pa.array([b"good", b"\xff", b"good"]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    assert outline(read(tmp_path / "a.parquet")) == [(1, "good"), (2, "not_utf8"), (3, "good")]


def test_a_damaged_parquet_keeps_the_rows_before(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [{"text": f"{n} " * 400} for n in range(600)]
    pq.write_table(pa.Table.from_pylist(texts), path, row_group_size=200, compression="zstd")
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 60] = bytes(60)
    items = read(wrote(tmp_path, "a.parquet", bytes(data)))
    assert len(items) == 401
    assert items[-1].reason == "unreadable"
    with pytest.raises(DataError, match="cannot be read on"):
        read(wrote(tmp_path, "b.parquet", b"PAR1 nothing"))


# --- where the rows are


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("empty.jsonl", b"", "empty; a file with one conversation a row"),
        ("blank.jsonl", b" \n\n", "holds no rows"),
        ("mark.json", b"\xef\xbb\xbf", "holds no rows"),
        ("array.json", b"[ ]", "holds no rows"),
        ("header.csv", b"text\n", "holds no rows"),
        ("a.txt", b"text", "holds no data file; a name that ends in .jsonl"),
        ("a.parquet.gz", b"text", "holds no data file"),
    ],
)
def test_a_file_without_rows_is_one_clear_error(tmp_path, name, content, match):
    with pytest.raises(DataError, match=match) as caught:
        read(wrote(tmp_path, name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_means_its_data_files_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "c.JSON", ".hidden.jsonl", "notes.md", "empty.jsonl"):
        wrote(tmp_path, name, b"" if "empty" in name else lines({"text": name}))
    wrote(tmp_path, "a.csv", "id , text\n1,a.csv\n")
    (tmp_path / "deeper.jsonl").mkdir()
    wrote(tmp_path / "deeper.jsonl", "d.jsonl", lines({"text": "d"}))
    items = read(tmp_path)
    assert [item.messages[0].content for item in items] == ["a.csv", "b.jsonl", "c.JSON"]
    assert str(items[1].place) == f"{tmp_path / 'b.jsonl'} line 1"


def test_a_folder_without_data_files_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    for path in (tmp_path, tmp_path / "x.jsonl"):
        with pytest.raises(DataError, match="holds no data file"):
            read(path)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets` that records what it was asked for."""
    module = types.ModuleType("datasets")
    module.asked = []
    module.rows = [chat("user", "assistant"), {"x": 1}]

    def load_dataset(*arguments, **options):
        module.asked.append((arguments, options))
        return iter(module.rows)

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_data_set_id_is_streamed_from_the_hub(hub):
    good, bad = read_conversations("owner/name:part", name="s", split="train_sft")
    assert hub.asked == [(("owner/name", "part"), {"split": "train_sft", "streaming": True})]
    assert str(good.place) == "owner/name:part row 1"
    assert (str(bad.place), bad.reason) == ("owner/name:part row 2", "unknown_shape")


@pytest.mark.parametrize(
    "path",
    ["absent.jsonl", "data/absent.json.gz", "data/absent.parquet", "data/a.txt", "../data/train",
     "/absent/train", "~/absent", "~no-such-user/x", "a/b/c", "name", "", "a b/c", "a/\0"],
)  # fmt: skip
def test_what_looks_like_a_path_is_never_sent_to_the_hub(hub, path):
    with pytest.raises(DataError, match=r"no such file|cannot be opened|holds no data"):
        list(read_conversations(path, name="x"))
    assert hub.asked == []


def test_a_local_path_wins_over_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    wrote(tmp_path, "owner/name/a.jsonl", lines({"text": "local"}))
    assert outline(read("owner/name")) == [(1, "local")]
    assert hub.asked == []


def test_hub_errors_are_one_line_that_says_what_to_do(hub, monkeypatch):
    def breaks():
        yield pair(1)
        raise ConnectionError("no\nroute")

    hub.rows = breaks()
    items = read_conversations("owner/name", name="x")
    assert isinstance(next(items), Conversation)
    with pytest.raises(DataError, match=r"row 1 of split 'train' .ConnectionError: no route.*netw"):
        next(items)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'skipalign\[hub\]'"):
        list(read_conversations("owner/name", name="x"))


# --- sizes, memory


def test_rows_over_the_limit_are_not_parsed(tmp_path, monkeypatch):
    exact = json.dumps({"text": "x" * 188})
    assert len(exact) == 200
    over = json.dumps({"text": "y" * 189})
    monkeypatch.setattr(raw_row, "CHUNK", 64)
    parse = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **k: parse(text, **k) if "y" not in text else 0)
    for name, data in (
        ("a.jsonl", "\ufeff" + "\r\n".join([exact, over, exact])),
        ("a.json", f"[{exact}, {over}, {exact}]"),
        ("b.json", f"[\n {exact},\n {over},\n {exact}\n]"),
    ):
        items = read(wrote(tmp_path, name, data), max_row_bytes=200)
        assert [text[:3] for _, text in outline(items)] == ["xxx", "too", "xxx"]
        assert "over 200 bytes (max_row_bytes)" in items[1].detail


def peak_bytes(path, **options):
    tracemalloc.start()
    try:
        count = Counter(
            getattr(item, "reason", "good")
            for item in read_conversations(str(path), name="x", **options)
        )
        return count, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = json.dumps({"text": "word " * 400})
    num_rows = 6000
    wrote(tmp_path, "a.jsonl", f"{row}\n" * num_rows)
    wrote(tmp_path, "a.json", "[" + ", ".join([row] * num_rows) + "]")
    wrote(tmp_path, "a.csv", "text\n" + f'"{"word " * 400}"\n' * num_rows)
    wrote(tmp_path, "a.jsonl.gz", gzip.compress(f"{row}\n".encode() * num_rows, 1))
    for name in ("a.jsonl", "a.json", "a.csv", "a.jsonl.gz"):
        count, peak = peak_bytes(tmp_path / name)
        assert count == {"good": num_rows}
        assert peak < 2**20, name


def test_a_huge_line_or_element_is_never_held_whole(tmp_path):
    huge, small = json.dumps({"text": "x" * 2**24}), json.dumps({"text": "small"})
    wrote(tmp_path, "a.jsonl", f"{small}\n{huge}\n{small}\n")
    wrote(tmp_path, "a.json", f"[{small}, {huge}, {small}]")
    wrote(tmp_path, "a.csv", f'text\nsmall\n"{"x" * 2**24}"\nsmall\n')
    wrote(tmp_path, "b.csv", "text\nsmall\n" + '"' + "x\n" * 2**18 + '"\nsmall\n')
    for name in ("a.jsonl", "a.json", "a.csv", "b.csv"):
        count, peak = peak_bytes(tmp_path / name, max_row_bytes=10_000)
        assert count == {"good": 2, "too_large": 1}, name
        assert peak < 2**21, name


def test_parquet_is_read_in_small_batches(tmp_path):
    table = pa.table({"text": [str(n) * 2000 for n in range(1000, 6000)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    del table
    before = pa.total_allocated_bytes()
    items = read_conversations(str(tmp_path / "a.parquet"), name="x")
    held = [pa.total_allocated_bytes() - before for _ in items]
    assert len(held) == 5000
    assert max(held) < 2**23 < (tmp_path / "a.parquet").stat().st_size


def test_the_room_imports_nothing_heavy():
    code = (
        "import sys, skipalign.conversation; "
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- any bytes

PIECES = st.sampled_from(
    [b"\n", b"\r\n", b'"', b",", b"{", b"}", b"[", b"]", b":", b"\\", b" ", b"\xff", b"null", b"1",
     b"\xef\xbb\xbf", b'"text"', b'{"text":"a"}', b"q,a", b'"q","a"', b"\\ud800", b"NaN", b"\x00"]
)  # fmt: skip


def survives(folder, name, data, **options):
    """Read and return the items; the source is refused exactly where none of them is good."""
    items: list[Conversation | Rejection] = []
    refused = ""
    try:
        for item in read_conversations(str(wrote(folder, name, data)), name="x", **options):
            items.append(item)
    except DataError as error:
        refused = str(error)
    assert bool(refused) != any(isinstance(item, Conversation) for item in items)
    assert "\n" not in refused
    places = [item.place.line for item in items]
    assert places == sorted(places)
    json.dumps([str(item) for item in items], ensure_ascii=False).encode()
    return items


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
CELLS = st.text(st.sampled_from('ab ,"\n\té'), max_size=6)
ANYTHING = {
    "data": st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=40).map(b"".join)),
    "elements": st.lists(VALUES, max_size=5),
    "indent": st.sampled_from([None, 0, 1, "\t"]),
    "chunk": st.integers(1, 9),
    "records": st.lists(st.tuples(CELLS, CELLS), max_size=5),
}


def any_bytes_are_survived(folder, data):
    for options in ({}, {"max_row_bytes": 24}):
        rows = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        numbers = [n for n, row in enumerate(rows, 1) if row.strip(b" \t\r\n")]
        items = survives(folder, "a.jsonl", data, **options)
        assert [item.place.line for item in items] == numbers
        survives(folder, "a.json", b"[" + data, **options)
        survives(folder, "a.json", b'[\n{"text": "a"},\n' + data + b"]", **options)
        survives(folder, "a.csv", b"prompt,completion\n" + data, **options)
        survives(folder, "a.csv", data, **options)
    survives(folder, "a.jsonl.gz", data)
    survives(folder, "b.jsonl.gz", gzip.compress(b"x" + data)[:-3])


def any_rows_are_one_item_each(folder, elements, indent, chunk, records):
    text = json.dumps([*elements, pair(1)], indent=indent, ensure_ascii=chunk % 2 == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_row, "CHUNK", chunk)
        items = survives(folder, "a.json", text.encode("utf-8", "surrogatepass"))
    assert len(items) == len(elements) + 1
    assert all(getattr(item, "reason", "") not in ("not_json", "cut_off") for item in items)
    file, records = io.StringIO(), [*records, ("q", "a")]
    csv.writer(file).writerows([("prompt", "completion"), *records])
    items = survives(folder, "a.csv", file.getvalue())
    found = [tuple(m.content for m in i.messages) for i in items if isinstance(i, Conversation)]
    assert found == [record for record in records if all(cell.strip() for cell in record)]
    assert len(items) == len(records)


@settings(max_examples=60, deadline=None)
@given(**ANYTHING)
def test_any_input_is_survived(tmp_path_factory, data, **rows):
    any_bytes_are_survived(tmp_path_factory.getbasetemp(), data)
    any_rows_are_one_item_each(tmp_path_factory.getbasetemp(), **rows)


@pytest.mark.long
@settings(max_examples=5000, deadline=None)
@given(**ANYTHING)
def test_much_more_input_is_survived(tmp_path_factory, data, **rows):
    any_bytes_are_survived(tmp_path_factory.getbasetemp(), data)
    any_rows_are_one_item_each(tmp_path_factory.getbasetemp(), **rows)
