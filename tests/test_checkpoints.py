"""A checkpoint is whole or passed over; counts and losses go on where it was written."""

from pathlib import Path

import pytest

from skipalign.checkpoints import Counts, counts_at, keep_losses_until, newest_checkpoint, seal
from skipalign.files import append_json_line, read_json_lines


def checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "optimizer.pt").write_bytes(b"state")
    if sealed:
        seal(path, Counts(num_sequences=step, tokens=10 * step))
    return path


def test_the_newest_is_that_of_most_steps(tmp_path: Path):
    for step in (5, 10, 100, 20):
        checkpoint(tmp_path, step)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-100"
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_what_is_not_whole_is_passed_over_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    good = checkpoint(tmp_path, 5)
    (checkpoint(tmp_path, 7, sealed=False) / "shards").mkdir()
    (tmp_path / "checkpoint-7/shards/one").write_bytes(b"part")
    seal(tmp_path / "checkpoint-7", Counts())
    (tmp_path / "checkpoint-7/shards/one").write_bytes(b"pa")
    checkpoint(tmp_path, 10, sealed=False)
    (checkpoint(tmp_path, 15) / "optimizer.pt").unlink()
    (checkpoint(tmp_path, 20) / "optimizer.pt").write_bytes(b"stat")
    (checkpoint(tmp_path, 25) / "skipalign_checkpoint.json").write_text("{")
    (tmp_path / "checkpoint-last").mkdir()
    assert newest_checkpoint(tmp_path) == good
    told = [record.getMessage() for record in caplog.records]
    for message, fault in zip(
        told,
        (
            "checkpoint-25 is broken and passed over: ",
            "checkpoint-20 is broken and passed over: optimizer.pt has 4 bytes of 5",
            "checkpoint-15 is broken and passed over: optimizer.pt is missing",
            "checkpoint-10 is broken and passed over: ",
            "checkpoint-7 is broken and passed over: shards/one has 2 bytes of 4",
        ),
        strict=True,
    ):
        assert fault in message


def test_counts_and_time_go_on(tmp_path: Path):
    counts = Counts(num_sequences=3, tokens=40, trained_tokens=7, max_row_tokens=20)
    counts.started -= 60
    path = checkpoint(tmp_path, 5, sealed=False)
    seal(path, counts)
    found = counts_at(path)
    assert (found.num_sequences, found.tokens, found.trained_tokens) == (3, 40, 7)
    assert found.max_row_tokens == 20
    assert found.spent == pytest.approx(60, abs=5)
    assert counts_at(None).tokens == 0


def test_losses_of_steps_to_be_done_again_are_dropped(tmp_path: Path):
    path = tmp_path / "loss.jsonl"
    for step in range(1, 9):
        append_json_line(path, {"step": step, "loss": 1.0})
    keep_losses_until(path, checkpoint(tmp_path, 5))
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3, 4, 5]
    with path.open("a") as handle:
        handle.write('{"step": 2, "lo')  # half a line, as a kill leaves it
    keep_losses_until(path, checkpoint(tmp_path, 3))
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3]
    assert {each.name for each in tmp_path.iterdir() if each.is_file()} == {"loss.jsonl"}
    keep_losses_until(path, None)
    assert not path.exists()
