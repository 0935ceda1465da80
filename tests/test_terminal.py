"""What reaches a terminal is harmless, and goes where it belongs."""

import json
import os

import pytest

from skipalign.progress import Silent, Terminal
from skipalign.terminal import (
    hush,
    last_line,
    print_accounting,
    print_cells,
    print_json,
    print_seconds,
    progress_for,
    say,
)


def test_no_library_tells_its_warnings_unless_asked(monkeypatch: pytest.MonkeyPatch):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    hush(verbose=False)
    assert os.environ["TRANSFORMERS_VERBOSITY"] == os.environ["HF_HUB_VERBOSITY"] == "error"


def test_errors_are_one_harmless_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    say("error: row\nsays \x1b[2J")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: row says \\x1b[2J\n"


def test_the_last_line_leaves_json_alone(capsys: pytest.CaptureFixture[str]):
    print_json({"text": "\x1b ä"})
    last_line("made x", "skipalign report x", as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"text": "\x1b ä"}
    assert captured.out.isascii()
    assert "\x1b" not in captured.out
    assert captured.err == "made x; next: skipalign report x\n"
    last_line("made x", "skipalign report x", as_json=False)
    assert capsys.readouterr().out == "made x; next: skipalign report x\n"


def test_every_row_is_in_the_printed_accounting(capsys: pytest.CaptureFixture[str]):
    counts = {
        "rows_read": 1010,
        "used": 1000,
        "rejected": {"not_json": 3, "wrong_role": 2},
        "dropped": {"too_long": 5},
        "notes": {"middle_cut": 4},
        "examples": 1003,
        "tokens": 50_000,
        "trained_tokens": 9_000,
    }
    print_accounting({"sources": {"ch\x1bats": counts}, "total": counts})
    first, *reasons = capsys.readouterr().out.splitlines()
    assert first == (
        "ch\\x1bats: 1,010 rows read = 1,000 used + 5 rejected + 5 dropped; "
        "1,003 samples, 50,000 tokens, 9,000 trained"
    )
    assert [line.split() for line in reasons] == [
        ["rejected:", "not_json", "3"],
        ["rejected:", "wrong_role", "2"],
        ["dropped:", "too_long", "5"],
        ["notes:", "middle_cut", "4"],
    ]


def test_scores_are_printed_with_interval_and_n(capsys: pytest.CaptureFixture[str]):
    cell = {"n": 4, "correct": 3, "mean": 0.75, "low": 0.3, "high": 0.95}
    needle = [{**cell, "context_length": 64, "depth": depth} for depth in (0.0, 1.0)]
    print_cells({"task": "needle", "cells": needle})
    assert "64: 0.750" in (line := capsys.readouterr().out)
    assert "6 of 8" in line
    print_cells({"task": "stretch", "cells": [{**cell, "distance": 1024}]})
    assert capsys.readouterr().out == "distance     1,024: 0.750 [0.300, 0.950] accuracy, 3 of 4\n"
    named = {"name": "lcc", "n": 4, "mean": 0.5, "low": 0.0, "high": 1.0}
    print_cells({"task": "longbench", "cells": [named]})
    assert capsys.readouterr().out == "lcc: 0.500 [0.000, 1.000] score, n 4\n"
    bare = {"name": "wiki ppl", "n": 4, "mean": 12.5, "low": None, "high": None}
    print_cells({"task": "lm_eval", "cells": [bare]})
    assert capsys.readouterr().out == "wiki ppl: 12.500 (no interval) score, n 4\n"
    print_cells({"task": "short_check", "cells": [], "summary": {"all": cell, "num_cut": 0}})
    assert capsys.readouterr().out == "all: 0.750 [0.300, 0.950] accuracy, 3 of 4\n"


def test_the_time_of_each_stage_and_of_all(capsys: pytest.CaptureFixture[str]):
    print_seconds({"prepare": 1.4, "train": 100})
    assert capsys.readouterr().out == "time: prepare 1 s, train 100 s; together 101 s\n"


def test_quiet_is_silent():
    assert isinstance(progress_for(quiet=True), Silent)
    assert isinstance(progress_for(quiet=False), Terminal)
