"""Files are whole or absent, and say which version wrote them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from skipalign.errors import RunError
from skipalign.files import (
    append_json_line,
    defaults,
    read_json,
    read_json_lines,
    whole_lines,
    write_json,
    write_text,
    written_aside,
)


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "a/b.txt"
    write_text(path, "old")

    def fail() -> None:
        with written_aside(path) as aside:
            aside.write_text("half of the new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["b.txt"]


def test_json_carries_its_schema_version(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": "é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"schema_version": 1, "x": "é"}
    assert read_json(tmp_path / "a.json")["x"] == "é"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ('{"schema', "not JSON"),
        ('{"schema_version": 99}', "schema_version is 99, this version reads 1"),
        ("[]", "schema_version is None"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match=message):
        read_json(tmp_path / "a.json")


def test_half_a_last_line_is_no_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"step": 1})
    append_json_line(path, {"step": 2})
    with path.open("a") as handle:
        handle.write('{"ste')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_whole_lines_takes_half_a_last_line_off_the_file(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    assert whole_lines(path) == []
    assert not path.exists()
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert whole_lines(path) == [b'{"a": 1}']
    append_json_line(path, {"c": 2})
    assert whole_lines(path) == [b'{"a": 1}', b'{"c": 2}']


def test_defaults_of_settings_are_as_json_reads_them():
    @dataclass
    class Settings:
        lengths: tuple[int, ...]
        depths: tuple[float, ...] = (0.5, 1.0)
        seed: int | None = None
        more: dict[str, int] = field(default_factory=dict)

    assert defaults(Settings) == defaults(Settings((1,))) == {"depths": [0.5, 1.0], "seed": None}
