"""example_file.py: examples on disk are the examples that were written."""

import json
import pickle
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from made_tokenizers import tokenizer
from skipalign import example_file
from skipalign.conversation import Conversation, read_conversations
from skipalign.encoding import Encoder
from skipalign.errors import RunError
from skipalign.example_file import ExampleFile, ExampleWriter, examples_path
from skipalign.files import write_json
from skipalign.prepare import Source, prepare


def chat(number: int) -> str:
    words = "the fox " * (1 + number % 3)
    messages = [
        {"role": "user", "content": f"Question {number} of {words}?"},
        {"role": "assistant", "content": f"Answer {number}."},
    ]
    return json.dumps({"messages": messages})


@pytest.fixture
def mixed(tmp_path) -> str:
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(chat(number) + "\n" for number in range(9)), encoding="utf-8")
    return str(path)


@pytest.fixture
def fast():
    return tokenizer("chatml")


def test_examples_read_back_as_they_were_encoded(mixed, fast, tmp_path, monkeypatch):
    monkeypatch.setattr(example_file, "_MAX_WAITING", 3)
    prepare([Source(mixed, "mixed")], fast, tmp_path)
    encoder = Encoder(fast, max_tokens=4096)
    items = read_conversations(mixed, name="mixed")
    wanted = [
        example
        for item in items
        if isinstance(item, Conversation)
        for example in encoder.encode(item).examples
    ]
    found = ExampleFile(tmp_path / "data")
    assert len(found) == len(wanted) == 9
    for a, b, length in zip(found, wanted, found.lengths, strict=True):
        for name in ("input_ids", "labels", "breaks"):
            assert getattr(a, name).tolist() == getattr(b, name).tolist()
            assert getattr(a, name).dtype == np.int32
        assert (a.segments, a.id, a.source) == (b.segments, b.id, b.source)
        assert length == len(b.input_ids)
    assert found[-1].id == wanted[-1].id
    assert [e.id for e in found[2:8:3]] == [wanted[2].id, wanted[5].id]
    with pytest.raises(IndexError):
        found[9]


def test_examples_can_be_sent_to_a_worker(mixed, fast, tmp_path):
    prepare([Source(mixed, "mixed")], fast, tmp_path)
    found = ExampleFile(tmp_path / "data")
    sent = pickle.dumps(found)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert again[3].input_ids.tolist() == found[3].input_ids.tolist()
    found[3].input_ids[0] = 0  # a copy, not the file
    assert again[3].input_ids[0] == found[3].input_ids[0] != 0


def test_the_file_is_plain_arrow(mixed, fast, tmp_path):
    prepare([Source(mixed, "mixed")], fast, tmp_path)
    table = pa.ipc.open_file(str(tmp_path / "data/examples.arrow")).read_all()
    assert table.column_names == ["input_ids", "trained", "segments", "breaks", "id", "source"]
    assert table.num_rows == 9


def test_a_file_that_is_cut_is_not_read(mixed, fast, tmp_path: Path):
    prepare([Source(mixed, "mixed")], fast, tmp_path)
    path = examples_path(tmp_path / "data")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="is not the file that its manifest describes"):
        ExampleFile(tmp_path / "data")


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path):
    def fail():
        with ExitStack() as stack:
            ExampleWriter(stack, examples_path(tmp_path), ["mixed"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "manifest.json", {"bytes": 0})
    with pytest.raises(RunError, match="is missing"):
        ExampleFile(tmp_path)
