"""boards.py: benchmarks part by part, beside published rows and never beside what is unlike."""

import csv
import io
import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from made_runs import write_json
from skipalign.boards import boards, drawn, only_block, rows
from skipalign.errors import RunError
from skipalign.evaluation.longbench_score import CATEGORIES, TASKS, score_folder, summary
from skipalign.evaluation.longbench_table import reference
from skipalign.results import group, read_run

STORED = score_folder(Path(__file__).parent / "predictions")
STORED_E = score_folder(Path(__file__).parent / "predictions", e=True)


def whole(score: float, tasks=TASKS):
    """A document as of all published samples of some tasks."""
    scores = {
        name: {"all": (np.array([score, score - 1, score + 1]), TASKS[name].num_samples)}
        for name in tasks
    }
    return {**STORED, **summary(scores), "incomplete": {}}


def run_of(folder: Path, *documents, task="longbench", method="ours"):
    for seed, document in enumerate(documents):
        path = folder / method / f"seed-{seed}/evaluation/{task}/{task}.json"
        write_json(path, {"cells": [], **document})
    return folder


def groups_of(*folders):
    return group([read_run(folder) for folder in folders])


def lines(block):
    return {
        (heading, row["name"]): row for heading, rows_of in block["sections"] for row in rows_of
    }


def test_the_published_rows_stand_beside_every_task_category_and_average(tmp_path):
    (board,) = boards(groups_of(run_of(tmp_path / "a", whole(50.0))))
    (block,) = board["blocks"]
    assert (board["title"], block["protocol"]) == ("LongBench", "LongBench (21 tasks)")
    assert len(block["published"]) == 8
    gpt = reference()["models"][block["published"][0]]
    found = lines(block)
    assert len(found) == 21 + 3 * 7 + 4
    for name, task in TASKS.items():
        (row,) = (row for (_, part), row in found.items() if part == name)
        assert row["published"][0] == f"{gpt['tasks'][name]:.1f}"
        assert row["n"] == f"{task.num_samples:,}"
    assert found["English", "English average"]["published"][0] == "44.0"
    assert found["Chinese", "Chinese average"]["published"][0] == "44.5"
    assert found["English", "Single-document QA"]["published"][0] == "39.8"
    assert found["Bilingual", "Bilingual average"]["published"] == [None] * 8
    assert found["Code", "lcc"]["cells"] == [{"text": "50.00", "interval": "[49.05, 50.95]"}]
    assert [heading for heading, _ in block["sections"]] == [
        *("Single-document QA", "Multi-document QA", "Summarisation", "Few shot"),
        *("Synthetic", "Code", "English", "Chinese", "Bilingual", "Other averages"),
    ]
    assert len(CATEGORIES) == 6
    assert "longbench-v1" in block["published_note"]


def test_published_scores_do_not_stand_beside_other_numbers_of_samples(tmp_path):
    some = whole(50.0)
    some["incomplete"] = {"qasper": "3 of 200"}
    (block,) = boards(groups_of(run_of(tmp_path / "a", some)))[0]["blocks"]
    found = lines(block)
    assert found["Single-document QA", "qasper"]["published"] == [None] * 8
    assert found["Single-document QA", "narrativeqa"]["published"][0] == "23.6"
    assert found["English", "Single-document QA"]["published"] == [None] * 8
    assert found["English", "English average"]["published"] == [None] * 8
    assert found["Chinese", "Chinese average"]["published"][0] == "44.5"
    assert "do not stand beside scores of other numbers of samples" in block["published_note"]
    assert any("qasper 3 of 200" in note for note in block["notes"])


def test_two_protocols_never_share_a_table(tmp_path):
    plain = run_of(tmp_path / "a", STORED, method="plain")
    by_length = run_of(tmp_path / "b", STORED_E, method="by-length")
    (board,) = boards(groups_of(plain, by_length))
    assert [[m["name"] for m in block["methods"]] for block in board["blocks"]] == [
        ["plain"],
        ["by-length"],
    ]
    assert "protocol is longbench-v1 for plain and longbench-e for by-length" in board["apart"]
    one, other = board["blocks"]
    assert other["published"] == []
    assert one["published"] == [], "a few stored answers have nothing published beside them"
    assert "they are not put side by side" in other["published_note"]
    with pytest.raises(RunError, match="protocol is longbench-v1 for plain and longbench-e for"):
        only_block(groups_of(plain, by_length), "longbench")


def test_longbench_e_has_its_three_buckets(tmp_path):
    (block,) = boards(groups_of(run_of(tmp_path / "a", STORED_E)))[0]["blocks"]
    assert block["buckets"] == ["0-4k", "4-8k", "8k+"]
    found = {name: row for (_, name), row in lines(block).items() if name in STORED_E["tasks"]}
    assert len(found) == len(STORED_E["tasks"])
    for name, row in found.items():
        entry = STORED_E["tasks"][name]
        shown = [cell and cell["text"] for cell in row["cells"]]
        assert shown == [
            f"{entry[bucket]['score']:.2f}" if entry[bucket]["score"] is not None else None
            for bucket in block["buckets"]
        ]
        assert row["n"] == " / ".join(str(entry[bucket]["n"]) for bucket in block["buckets"])


def test_methods_with_other_tasks_share_a_table_in_the_order_of_the_benchmark(tmp_path):
    first = run_of(tmp_path / "a", whole(50.0, ["lcc", "vcsum"]), method="first")
    second = run_of(tmp_path / "b", whole(40.0, ["qasper", "lcc"]), method="second")
    (block,) = boards(groups_of(first, second))[0]["blocks"]
    names = [name for _, name in lines(block)]
    assert names[:3] == ["qasper", "vcsum", "lcc"]
    assert [bool(cell) for cell in lines(block)["Summarisation", "vcsum"]["cells"]] == [True, False]


def test_other_benchmarks_have_their_parts(tmp_path):
    share = {"n": 4, "correct": 2, "mean": 0.5, "low": 0.15, "high": 0.85}
    document = {
        "task": "longbench_v2",
        "settings": {"data": "/here", "data_sha256": "x", "limit": None},
        "cells": [{"name": "short", **share}],
        "summary": {"all": share, "easy": share, "num_cut": 0},
    }
    here = run_of(tmp_path / "a", document, task="longbench_v2")
    there = {**document, "settings": {**document["settings"], "data": "/there"}}
    there = run_of(tmp_path / "b", there, task="longbench_v2", method="theirs")
    (block,) = boards(groups_of(here, there))[0]["blocks"]
    assert list(lines(block)) == [
        ("", "all"),
        ("", "short"),
        ("the same, divided otherwise", "easy"),
    ]
    assert lines(block)["", "all"]["cells"][1] == {"text": "0.500", "interval": "[0.150, 0.850]"}
    assert lines(block)["", "all"]["is_mean"]
    other = {**document, "settings": {**document["settings"], "limit": 4}}
    other = run_of(tmp_path / "c", other, task="longbench_v2", method="fewer")
    board = boards(groups_of(here, other))[0]
    assert (len(board["blocks"]), board["apart"]) == (2, "other settings, below each table")
    with pytest.raises(RunError, match="longbench_v2 was measured in 2 unlike ways"):
        only_block(groups_of(here, other), "longbench_v2")


def test_the_mean_of_tasks_has_an_interval(tmp_path):
    cells = [{"name": name, "n": 8, "mean": 0.5, "low": 0.3, "high": 0.7} for name in "ab"]
    document = {"cells": cells, "summary": {"mean_of_tasks": 0.5, "num_tasks": 2}}
    run = run_of(tmp_path / "a", document, task="infinitebench")
    found = rows(only_block(groups_of(run), "infinitebench"))[-1]
    assert (found["part"], found["n"]) == ("mean of tasks", 16)
    assert found["high"] - found["score"] == pytest.approx(0.2 / 2**0.5)


def test_the_table_carries_its_data(tmp_path):
    block = only_block(groups_of(run_of(tmp_path / "a", whole(50.0), whole(54.0))), "longbench")
    text = unquote(drawn(block)["csv"].partition(",")[2])
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == 21 + 3 * 7 + 4
    assert (found[0]["score"], found[0]["num_seeds"]) == ("52", "2")


def test_results_that_cannot_be_read_are_no_table(tmp_path):
    run = run_of(tmp_path / "a", {"tasks": {}})
    assert boards(groups_of(run)) == []
    with pytest.raises(RunError, match="lacks protocol"):
        only_block(groups_of(run), "longbench")
    assert json.loads((run / "ours/seed-0/evaluation/longbench/longbench.json").read_text())
