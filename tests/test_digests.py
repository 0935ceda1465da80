"""Digests of data files: what a training began with is what it goes on with."""

import hashlib

import pytest

from skipalign.digests import files_of, require_same_files, require_unchanged
from skipalign.errors import DataError
from skipalign.progress import Silent


def test_a_file_is_known_by_its_bytes_and_kind_wherever_it_lies(tmp_path):
    text = b'{"messages": []}\n{"messages": []}'
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl").write_bytes(text)
    one, other = (files_of(str(tmp_path / name), Silent()) for name in ("a.jsonl", "b.jsonl"))
    assert one.digests == other.digests == ((".jsonl", hashlib.sha256(text).hexdigest()),)
    assert one.num_rows == 2  # the last line has no end


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    found = files_of(str(path), Silent())
    require_unchanged(str(path), found)
    path.write_text("{}\n{}\n")
    with pytest.raises(DataError, match="changed while it was read; a file that stands still"):
        require_unchanged(str(path), found)


def test_other_files_than_a_training_began_with_are_named(tmp_path):
    began = {"a": [[".jsonl", "1"]], "b": [[".jsonl", "2"]]}
    require_same_files({"a": ((".jsonl", "1"),), "b": ((".jsonl", "2"),)}, began, tmp_path)
    require_same_files({"a": ((".jsonl", "9"),)}, None, tmp_path)
    with pytest.raises(DataError, match=r"began with other data \(b changed since\)"):
        require_same_files({"a": ((".jsonl", "1"),), "b": ((".jsonl", "3"),)}, began, tmp_path)
