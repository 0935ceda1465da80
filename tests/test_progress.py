"""Bars go to stderr, with the time left; lines where nobody watches; silence is silent."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from skipalign.progress import Labelled, Lines, Pace, Silent, Terminal, clock, counted


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def fast() -> tuple[Lines, io.StringIO]:
    """Return lines that come every 20 ms, and where they go."""
    file = io.StringIO()
    return Lines(first=0.02, longest=0.02, file=file), file


def work(progress: Any, total: int | None = 3) -> None:
    with progress.bar("train", None) as bar:
        if total is not None:
            bar.set_total(total)
        for _ in range(3):
            time.sleep(0.03)
            bar.advance()


@pytest.mark.parametrize("progress", [Silent(), Terminal(), Lines(first=0.01)])
def test_bars_never_write_to_stdout(progress: Any, capsys: pytest.CaptureFixture[str]):
    work(progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("train" in captured.err) == isinstance(progress, Lines)


def test_lines_come_now_and_then_with_the_time_left():
    lines, file = fast()
    work(lines)
    *during, last = file.getvalue().splitlines()
    assert len(during) >= 2
    for line in during:
        assert re.fullmatch(
            r"train: \d of 3 \(\d+%\), 0:00:00 gone(, about 0:00:0\d left)?", line
        ) or line.startswith("train: at work")
    assert "left" in during[-1]
    assert re.fullmatch(r"train: 3 of 3 \(100%\), took 0:00:0\d", last)


def test_without_a_total_lines_say_what_is_done():
    lines, file = fast()
    work(lines, total=None)
    *during, last = file.getvalue().splitlines()
    assert not any("left" in line for line in during)
    assert last.startswith("train: 3 done, took")


def test_a_short_stage_has_no_lines():
    file = io.StringIO()
    work(Lines(first=5, file=file))
    assert file.getvalue() == ""


def test_pauses_grow():
    file = io.StringIO()
    with Lines(first=0.02, longest=10, file=file).bar("train", 9):
        time.sleep(0.25)
    assert len(file.getvalue().splitlines()) <= 5  # at 20, 60, 140 ms and the end


def test_a_stage_that_fails_ends_its_lines():
    lines, file = fast()
    with contextlib.suppress(ValueError), lines.bar("train", 2):
        time.sleep(0.03)
        raise ValueError
    assert "took" in file.getvalue()
    ended = file.getvalue()
    time.sleep(0.05)
    assert file.getvalue() == ended


def test_the_time_left_is_that_of_the_pace():
    now = Clock()
    pace = Pace(100, now)
    assert pace.left() is None
    now.seconds = 10
    pace.advance(20)
    assert pace.left() == 40
    now.seconds = 12  # nothing came since: the estimate grows
    assert pace.left() == 48


def test_what_was_done_before_says_nothing_of_the_pace():
    now = Clock()
    pace = Pace(100, now)
    pace.already(50)
    assert pace.left() is None
    now.seconds = 10
    pace.advance(10)
    assert pace.left() == 40
    assert pace.counted() == "60 of 100 (60%)"


def test_counting_counts_each_item():
    lines, file = fast()
    for _ in counted(lines, "score", [1, 2, 3]):
        time.sleep(0.02)
    assert "score: 3 of 3" in file.getvalue()


def test_a_label_stands_before_the_description(capsys: pytest.CaptureFixture[str]):
    work(Labelled(Lines(first=0.01), "normal, seed 0:"))
    assert "normal, seed 0: train" in capsys.readouterr().err


def test_seconds_read_as_a_clock():
    assert (clock(5), clock(3725.4)) == ("0:00:05", "1:02:05")


SCRIPT = """
import time
from skipalign.progress import Terminal
with Terminal().bar("train [red] \\x1b[2J", 4) as bar:
    bar.already(1)
    for _ in range(3):
        time.sleep(0.2)
        print("a word on stdout")
        bar.advance()
"""


def test_on_a_terminal_a_bar_shows_the_time_left_and_stdout_stays_apart():
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=follower, env=env, check=True
    )
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert done.stdout.decode() == "a word on stdout\n" * 3
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "train [red] \ufffd[2J" in plain
    assert "4/4" in plain
    assert "\x1b[2J" not in shown
    assert re.search(r"[23]/4 0:00:00 0:00:0\d", plain)  # the second time is what is left
