"""What tests of the command line share: a folder to run in, and what a command printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from skipalign import report as report_room
from skipalign.cli import main

RECIPE = """
base: tiny
data: chats.jsonl
strategy: {name: skipalign, max_position: 4096, skip_fraction: 1.0}
trainer: {max_steps: 2}
"""
METHODS = (
    RECIPE
    + """
seeds: [1, 2]
evaluation: {needle: {lengths: [64], trials: {64: 3}, question: "Who is {key}?"}}
methods: {base: {train: false}, normal: {strategy: contiguous}, skipalign: {}}
"""
)

TRAINED = ("normal", "normal", "skipalign", "skipalign")


class Ended:
    """How a command ended and what it printed."""

    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]


@pytest.fixture
def cli_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    turns = [
        {"role": "user", "content": "Who is it? \x1b[2J"},
        {"role": "assistant", "content": "Me."},
    ]
    rows = [json.dumps({"messages": turns}), "no json"]
    Path("chats.jsonl").write_text("\n".join(rows) + "\n")
    Path("own.yaml").write_text(RECIPE)
    Path("many.yaml").write_text(METHODS)


@pytest.fixture
def run(cli_folder: None, capfd: pytest.CaptureFixture[str]):
    def call(*words: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(words)
        captured = capfd.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def study(cli_folder: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the rooms that take minutes; keep what they were called with."""
    from skipalign import evaluating, study

    calls: dict[str, Any] = {}

    def keep(name: str, result: Any):
        def call(*args: Any, **given: Any) -> Any:
            calls[name] = (*args, given)
            return result

        return call

    counts = {"rows_read": 2, "used": 1, "rejected": {"not_json": 1}, "dropped": {}, "notes": {}}
    counts |= {"examples": 1, "tokens": 30, "trained_tokens": 5}
    cell = {"context_length": 64, "depth": 0.5, "n": 2, "correct": 1, "mean": 0.5}
    cell |= {"distance": 512, "low": 0.1, "high": 0.9}
    monkeypatch.setattr(study, "begin", keep("begin", None))
    monkeypatch.setattr(study, "prepare", keep("prepare", {"sources": {"chats": counts}}))
    monkeypatch.setattr(study, "train", keep("train", {"steps": 2}))
    monkeypatch.setattr(study, "run", keep("run", Path("runs/own/report.html")))
    monkeypatch.setattr(study, "seconds_by_stage", lambda *_: {"train": 12.0})
    found = {"task": "needle", "cells": [cell]}
    monkeypatch.setattr(evaluating, "evaluate_model", keep("evaluate", found))
    monkeypatch.setattr(report_room, "write_report", keep("report", Path("runs/own/report.html")))
    monkeypatch.setattr(report_room, "table", lambda runs: [{"method": "own"}])
    monkeypatch.setattr(report_room, "terminal_tables", lambda runs: ["the table"])
    return calls
