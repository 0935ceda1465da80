"""The number of rows is known before they are read, in every format whose lines tell it."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skipalign.rowcount import num_rows


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize(("kind", "rows"), [("jsonl", 3), ("ndjson", 3), ("csv", 2), ("JSONL", 3)])
def test_lines_are_rows_but_for_the_head_of_csv(tmp_path: Path, kind: str, rows: int, ending: str):
    text = "a\nb\nc" + ending
    (tmp_path / f"x.{kind}").write_text(text)
    (tmp_path / f"x.{kind}.gz").write_bytes(gzip.compress(text.encode()))
    assert num_rows(tmp_path / f"x.{kind}") == rows
    assert num_rows(tmp_path / f"x.{kind}.gz") == rows
    assert num_rows(tmp_path / f"x.{kind}", lines=7) == 7 - (kind == "csv")


def test_parquet_says_it_itself(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a"] * 5}), tmp_path / "x.parquet")
    assert num_rows(tmp_path / "x.parquet") == 5


def test_what_cannot_be_known_is_not_guessed(tmp_path: Path):
    for name, content in {
        "x.json": b"[]",
        "x.txt": b"a\n",
        "x": b"a\n",
        "broken.parquet": b"no",
        "broken.jsonl.gz": b"no gzip",
        "cut.jsonl.gz": gzip.compress(b"a\n" * 99)[:-9],
    }.items():
        (tmp_path / name).write_bytes(content)
        assert num_rows(tmp_path / name) is None
    assert num_rows(tmp_path / "nosuch.jsonl") is None
