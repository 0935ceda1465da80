"""Files are whole or absent, and say which version wrote them."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from skipalign import files
from skipalign.errors import RunError
from skipalign.files import (
    alone_in,
    append_json_line,
    defaults,
    disk_faults_of,
    json_text,
    keep_json_lines,
    named_by,
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


def test_lines_that_are_dropped_leave_the_others_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.jsonl"
    for step in (1, 2, 3):
        append_json_line(path, {"step": step})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            keep_json_lines(path, lambda line: line["step"] != 2)
    assert len(read_json_lines(path)) == 3
    keep_json_lines(path, lambda line: line["step"] != 2)
    assert read_json_lines(path) == [{"step": 1}, {"step": 3}]
    keep_json_lines(path, lambda line: False)
    assert not path.exists()


HOLDER = "import sys; from pathlib import Path; from skipalign.files import alone_in\n" + (
    "with alone_in(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
)


def test_a_folder_takes_one_process_at_a_time_and_a_kill_lets_go(tmp_path: Path):
    folder = tmp_path / "runs/own"
    words = [sys.executable, "-c", HOLDER, str(folder)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(RunError, match=f"process {other.pid} of .* works in it; wait"):
        alone_in(folder).__enter__()
    with alone_in(tmp_path / "runs/another"):
        pass
    other.kill()
    other.communicate()
    with alone_in(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    with alone_in(folder):
        pass


def test_a_file_system_without_locks_is_named_and_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with alone_in(tmp_path):
        assert f"{tmp_path} cannot be locked" in caplog.text


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path):
    """/dev/full takes no byte, as a disk without room; a handle's own error names no file."""
    path = tmp_path / "results"
    with (
        pytest.raises(OSError, match=f"No space left on device: '{path}'") as told,
        named_by(path),
        Path("/dev/full").open("w") as handle,
    ):
        handle.write("x")
    assert told.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match="elsewhere"), named_by(path):
        (tmp_path / "elsewhere").read_text()


def test_what_libraries_say_of_a_full_disk_becomes_its_error(tmp_path: Path):
    told = f"No space left on device: '{tmp_path}'"
    with pytest.raises(OSError, match=told), disk_faults_of(tmp_path):
        raise ValueError("I/O error: No space left on device (os error 28)")
    with pytest.raises(OSError, match=told), disk_faults_of(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="no fault of the disk"), disk_faults_of(tmp_path):
        raise ValueError("no fault of the disk")
    assert list(tmp_path.iterdir()) == []


def test_half_a_character_of_an_answer_is_kept_and_read_again(tmp_path: Path):
    answer = {"answer": "caf\u00e9 \ud83d"}
    write_json(tmp_path / "whole.json", {"schema_version": 1, **answer})
    assert read_json(tmp_path / "whole.json")["answer"] == answer["answer"]
    for _ in range(2):
        append_json_line(tmp_path / "lines.jsonl", answer)
    assert read_json_lines(tmp_path / "lines.jsonl") == [answer, answer]
    assert json_text({"a": "caf\u00e9"}) == '{"a": "caf\u00e9"}'
