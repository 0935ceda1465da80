"""results.py: what is read from a run folder, and whose it is."""

import json
import shutil

import pytest

from made_runs import DEPTHS, LENGTHS, make_run, make_training, write_perplexity
from skipalign.errors import RunError
from skipalign.evaluation.tasks import TASKS
from skipalign.files import read_json, write_json
from skipalign.results import (
    TOKENS_OF_TASK,
    Cell,
    group,
    outcomes,
    pooled,
    read_run,
    read_training,
    rows_of_training,
    training_window,
)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "tiny")


# ------------------------------------------------------------------------- order and names


def test_methods_come_in_the_recipes_order(tmp_path):
    folder = tmp_path / "run"
    for order, method in enumerate(("zebra", "normal", "ape")):
        make_training(folder / method / "seed-0", method, 0, order=order)
    assert [each.name for each in group([read_run(folder)])] == ["zebra", "normal", "ape"]


def test_without_an_order_normal_comes_first_and_the_others_by_name(tmp_path):
    for method in ("zebra", "normal", "ape"):
        make_training(tmp_path / "run" / method / "seed-0", method, 0)
    found = [each.name for each in group([read_run(tmp_path / "run")])]
    assert found == ["normal", "ape", "zebra"]


def test_seeds_come_in_numerical_order(tmp_path):
    for seed in (10, 2, 1):
        make_training(tmp_path / "run/normal" / f"seed-{seed}", "normal", seed)
    (each,) = group([read_run(tmp_path / "run")])
    assert [training.seed for training in each.trainings] == [1, 2, 10]


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path):
    folders = [make_run(tmp_path / name / "x", methods=("normal",)) for name in "ab"]
    names = [each.name for each in group([read_run(folder) for folder in folders])]
    assert names == [f"normal ({folder})" for folder in folders]


def test_a_flat_run_is_one_training(tmp_path):
    make_training(tmp_path / "mine", "skipalign", 7)
    run = read_run(tmp_path / "mine")
    assert [(each.method, each.seed) for each in run.trainings] == [("skipalign", 7)]
    assert [each.name for each in group([run])] == ["skipalign"]


def test_a_training_beside_seeds_is_one_of_them_once(tmp_path):
    folder = tmp_path / "run"
    make_training(folder, "skipalign", 0)
    make_training(folder / "skipalign/seed-1", "skipalign", 1)
    found = [(each.seed, each.folder) for each in read_run(folder).trainings]
    assert found == [(0, folder), (1, folder / "skipalign/seed-1")]
    make_training(folder / "skipalign/seed-0", "skipalign", 0)
    assert [each.seed for each in read_run(folder).trainings] == [0, 1]
    (folder / "training.json").unlink()
    assert [each.seed for each in read_run(folder).trainings] == [0, 1]


def test_method_and_seed_are_read_from_the_path_where_training_json_is_absent(tmp_path):
    make_training(tmp_path / "run/base-ntk/seed-3", "normal", 3)
    (tmp_path / "run/base-ntk/seed-3/training.json").unlink()
    (training,) = read_run(tmp_path / "run").trainings
    assert (training.method, training.seed) == ("base-ntk", 3)


# ---------------------------------------------------------------------------------- unreadable


@pytest.mark.parametrize(
    ("name", "found"),
    [("absent", "no such folder"), ("empty", "no run folder"), ("file", "a file, no folder")],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, name, found):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"{name}: {found}.* give a"):
        read_run(tmp_path / name)


def test_a_document_of_another_version_or_without_its_parts_is_noted(tmp_path):
    folder = make_training(tmp_path / "mine", "normal", 0)
    write_json(folder / "coverage.json", {"strategy": "pose"})
    (folder / "probe.json").write_text('{"schema_version": 99, "checks": []}')
    found = read_training(folder)
    assert "lacks max_position" in found.unread["coverage"]
    assert "schema_version is 99" in found.unread["probe"]
    assert not {"coverage", "probe"} & set(found.documents)


@pytest.mark.parametrize("place", ["evaluation/needle", "needle", "."])
def test_a_folder_of_results_alone_is_read(run, tmp_path, place):
    kept = run / "normal/seed-0/evaluation/needle"
    shutil.copytree(kept, tmp_path / "mine" / place, dirs_exist_ok=True)
    (training,) = read_run(tmp_path / "mine").trainings
    assert (training.method, training.seed) == ("mine", None)
    known = read_training(run / "normal/seed-0")
    assert training.cells["needle"] == known.cells["needle"]
    assert outcomes(training, "needle") == outcomes(known, "needle")


# ----------------------------------------------------------------------------- cells and trials


def test_the_subtasks_of_one_length_are_pooled(tmp_path):
    share = {"mean": 0.5, "low": 0.1, "high": 0.9}
    cells = [
        {"name": "qa1", "context_length": 4000, "n": 4, "correct": 1, **share},
        {"name": "qa2", "context_length": 4000, "n": 4, "correct": 3, **share},
        {"name": "qa1", "context_length": 8000, "n": 2, "correct": 1, **share},
    ]
    write_json(tmp_path / "mine/babilong.json", {"task": "babilong", "cells": cells})
    found = read_training(tmp_path / "mine").cells["babilong"]
    assert found == {4000: {0.0: Cell(4, 8)}, 8000: {0.0: Cell(1, 2)}}


def test_every_task_against_a_number_of_tokens_is_read():
    assert set(TOKENS_OF_TASK) == {name for name, task in TASKS.items() if task.against}
    assert TOKENS_OF_TASK["stretch"] == "distance"


def test_cells_hold_counts_or_values(tmp_path):
    folder = make_training(tmp_path / "run/normal/seed-0", "normal", 0)
    write_perplexity(folder, {128: [1.0, 2.0], 256: [4.0, 5.0]})
    found = read_training(folder).cells
    assert found["perplexity"] == {
        128: {0.0: Cell(0, 2, (1.0, 2.0))},
        256: {0.0: Cell(0, 2, (4.0, 5.0))},
    }
    document = read_json(folder / "evaluation/needle/needle.json")["cells"][0]
    assert found["needle"][128][0.0] == Cell(document["correct"], document["n"])


def test_pooled_cells_are_one_with_all_their_trials():
    assert pooled([Cell(1, 4), Cell(2, 2)]) == Cell(3, 6)
    # Two methods that answered about the same two texts: an interval draws texts, not answers.
    asked = [Cell(2, 4, texts=((1, 1), (0, 0))), Cell(1, 2, texts=((1,), (0,)))]
    assert pooled(asked) == Cell(3, 6, texts=((1, 1, 1), (0, 0, 0)))
    assert pooled([*asked, Cell(1, 2)]).texts == ()
    both = pooled([Cell(0, 1, (1.5,)), Cell(0, 2, (2.0, 4.0))])
    assert (both, both.mean) == (Cell(0, 3, (1.5, 2.0, 4.0)), 2.5)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], ["x", 2.0], None])
def test_values_that_are_not_n_numbers_are_named(tmp_path, values):
    folder = tmp_path / "run/normal/seed-0"
    cells = [{"context_length": 128, "n": 2, "values": values}]
    write_json(folder / "evaluation/perplexity/perplexity.json", {"cells": cells})
    found = read_training(folder)
    assert "it needs context_length, n and values as numbers" in found.unread["perplexity"]
    assert "perplexity" not in found.documents


def test_single_trials_come_from_the_document_or_the_file_beside_it(run):
    training = read_training(run / "normal/seed-0")
    for task, key in (("needle", "context_length"), ("stretch", "distance")):
        found = outcomes(training, task)
        cells = {
            (cell[key], cell.get("depth", 0)): cell["correct"]
            for cell in training.documents[task]["cells"]
        }
        assert {place: sum(right) for place, right in found.items()} == cells
        assert {value for right in found.values() for value in right} == {0.0, 1.0}


def test_trials_stand_in_their_order_whatever_the_order_of_lines(run):
    path = run / "normal/seed-0/evaluation/needle/needle.trials.jsonl"
    before = outcomes(read_training(run / "normal/seed-0"), "needle")
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *reversed(lines), ""]))
    assert outcomes(read_training(run / "normal/seed-0"), "needle") == before
    assert any(right != tuple(sorted(right)) for right in before.values())


def test_trials_that_are_not_those_of_the_document_do_not_count(run):
    path = run / "normal/seed-0/evaluation/needle/needle.trials.jsonl"
    lines = path.read_text().splitlines()
    other = json.loads(lines[1])
    other["correct"] = not other["correct"]
    path.write_text("\n".join([lines[0], json.dumps(other), *lines[2:], ""]))
    found = outcomes(read_training(run / "normal/seed-0"), "needle")
    assert (other["context_length"], other["depth"]) not in found
    assert len(found) == len(LENGTHS) * len(DEPTHS) - 1


@pytest.mark.parametrize("content", [None, "", "{broken\n", '{}\n{"n": 1}\n'])
def test_without_single_trials_the_counts_still_stand(run, content):
    path = run / "skipalign/seed-0/evaluation/needle/needle.trials.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    training = read_training(run / "skipalign/seed-0")
    assert outcomes(training, "needle") == {}
    assert len(training.cells["needle"]) == len(LENGTHS)


# ----------------------------------------------------------------------------- loss and window


def test_loss_keeps_the_later_line_of_a_step_and_passes_over_half_a_line(tmp_path):
    lines = [(10, 3.0), (20, 2.0), (30, 9.0), (30, 1.0), (40, float("nan"))]
    text = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in lines)
    (tmp_path / "loss.jsonl").write_text(text + '{"step": 50, "lo')
    found = read_training(tmp_path)
    assert found.loss == ((10, 3.0), (20, 2.0), (30, 1.0))
    assert "2 line(s)" in found.unread["loss"]


def test_the_training_window_is_that_of_normal(tmp_path):
    for method, window in (("long", 1024), ("normal", 128), ("short", 64)):
        make_training(tmp_path / method / "seed-0", method, 0, max_row_tokens=window)
    groups = group([read_run(tmp_path)])
    assert training_window(groups) == 128
    assert rows_of_training(groups) == "128 tokens, but for long (1,024)"
    shutil.rmtree(tmp_path / "normal")
    assert training_window(group([read_run(tmp_path)])) == 64
    assert training_window([]) is None
    assert rows_of_training([]) is None
