"""results.py: what is read from a run folder, what is averaged and what is kept apart."""

import json
import shutil

import numpy as np
import pytest

from made_runs import DEPTHS, LENGTHS, NEEDLE_SETTINGS, make_run, make_training, write_needle
from skipalign.errors import RunError
from skipalign.evaluation.metrics import bootstrap_nested, wilson_interval
from skipalign.files import read_json, write_json
from skipalign.results import (
    grid,
    group,
    read_run,
    read_training,
    rows,
    score,
    sections,
    settings_digest,
    table,
    training_window,
)


def cell(tokens, depth, correct, n=4):
    return {"context_length": tokens, "depth": depth, "correct": correct, "n": n}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "tiny")


def needle_section(*folders):
    (found,) = sections(group([read_run(folder) for folder in folders]), "needle")
    return found


# ------------------------------------------------------------------------------------ the table


def test_table_has_a_row_for_every_method_and_length(run):
    found = table([run])
    assert [(row["method"], row["context_length"]) for row in found] == [
        (method, tokens)
        for method in ("normal", "skipalign", "skipalign-bias")
        for tokens in LENGTHS
    ]
    assert list(found[0]) == [
        *("method", "context_length", "mean", "low", "high", "num_seeds", "num_trials")
    ]
    assert {(row["num_seeds"], row["num_trials"]) for row in found} == {(3, 3 * 5 * 8)}
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in found)
    assert json.loads(json.dumps(found)) == found


def test_mean_is_over_seeds_and_the_interval_the_nested_bootstrap_of_their_trials(run):
    counts = []
    for seed in range(3):
        cells = read_json(run / f"skipalign/seed-{seed}/evaluation/needle/needle.json")["cells"]
        same = [one for one in cells if one["context_length"] == 1024]
        counts.append((sum(one["correct"] for one in same), sum(one["n"] for one in same)))
    (row,) = [
        row for row in table([run]) if (row["method"], row["context_length"]) == ("skipalign", 1024)
    ]
    assert row["mean"] == pytest.approx(np.mean([correct / n for correct, n in counts]))
    trials = [[1.0] * correct + [0.0] * (n - correct) for correct, n in sorted(counts)]
    low, high = bootstrap_nested(trials, np.random.default_rng(0))
    assert (row["low"], row["high"]) == (low, high)
    assert row["low"] < row["mean"] < row["high"]


def test_one_seed_has_a_wilson_interval():
    found = score(((7, 10),))
    assert (found["low"], found["high"]) == wilson_interval(7, 10)
    assert (found["mean"], found["num_seeds"], found["num_trials"]) == (0.7, 1, 10)


def test_seeds_of_unequal_size_weigh_alike():
    assert score(((10, 10), (0, 30)))["mean"] == 0.5


def test_an_interval_does_not_depend_on_the_order_of_seeds():
    assert score(((3, 8), (7, 8))) == score(((7, 8), (3, 8)))


def test_grid_holds_every_cell(run):
    section = needle_section(run)
    found = grid(section, section.groups[0])
    assert sorted(found) == [(tokens, depth) for tokens in LENGTHS for depth in DEPTHS]
    cells = [
        read_json(run / f"normal/seed-{seed}/evaluation/needle/needle.json")["cells"]
        for seed in range(3)
    ]
    first = [one[0] for one in cells]
    assert found[128, 0.0]["mean"] == pytest.approx(
        np.mean([one["correct"] / one["n"] for one in first])
    )
    assert found[128, 0.0]["num_trials"] == 24


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


def test_the_same_method_of_two_runs_is_not_averaged(tmp_path):
    make_run(tmp_path / "one", methods=("normal",))
    make_run(tmp_path / "two", methods=("normal", "skipalign"))
    found = table([tmp_path / "one", tmp_path / "two"])
    names = list(dict.fromkeys(row["method"] for row in found))
    assert names == ["normal (one)", "normal (two)", "skipalign"]
    assert {row["num_seeds"] for row in found} == {3}


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path):
    folders = [make_run(tmp_path / name / "x", methods=("normal",)) for name in "ab"]
    names = [each.name for each in group([read_run(folder) for folder in folders])]
    assert names == [f"normal ({folder})" for folder in folders]


def test_a_flat_run_is_one_training(tmp_path):
    make_training(tmp_path / "mine", "skipalign", 7)
    run = read_run(tmp_path / "mine")
    assert [(each.method, each.seed) for each in run.trainings] == [("skipalign", 7)]
    assert {row["method"] for row in table([tmp_path / "mine"])} == {"skipalign"}


def test_method_and_seed_are_read_from_the_path_where_training_json_is_absent(tmp_path):
    make_training(tmp_path / "run/base-ntk/seed-3", "normal", 3)
    (tmp_path / "run/base-ntk/seed-3/training.json").unlink()
    (training,) = read_run(tmp_path / "run").trainings
    assert (training.method, training.seed) == ("base-ntk", 3)


# --------------------------------------------------------------- unlike, incomplete, unreadable


def test_seeds_measured_with_unlike_settings_are_kept_apart(run):
    document = read_json(run / "normal/seed-1/evaluation/needle/needle.json")
    write_needle(run / "normal/seed-1", document["cells"], needle="Psst: {key} is {value}.")
    found = sections(group([read_run(run)]), "needle")
    assert [[each.name for each in one.groups] for one in found] == [
        ["normal", "skipalign", "skipalign-bias"],
        ["normal"],
    ]
    assert {row["num_seeds"] for row in rows(found[0]) if row["method"] == "normal"} == {2}
    with pytest.raises(RunError, match=r"needle is .*secret.* and .*Psst"):
        table([run])


def test_what_decides_a_score_makes_settings_unlike_and_nothing_else():
    document = {"settings": NEEDLE_SETTINGS, "prompts": {"haystack_sha256": "a"}}

    def changed(**values):
        return {**document, "settings": {**NEEDLE_SETTINGS, **values}}

    digest = settings_digest(document)
    assert settings_digest(changed(lengths=[1, 2])) == digest
    assert settings_digest(changed(haystack="/elsewhere/prose")) == digest
    assert settings_digest(changed(seed=1)) != digest
    assert settings_digest({**document, "prompts": {"haystack_sha256": "b"}}) != digest


def test_a_seed_with_missing_depths_does_not_count_at_that_length(tmp_path):
    folder = tmp_path / "run"
    for seed, cells in enumerate(
        (
            [cell(128, 0.0, 4), cell(128, 1.0, 0), cell(256, 0.0, 4), cell(256, 1.0, 0)],
            [cell(128, 0.0, 4), cell(128, 1.0, 0), cell(256, 0.0, 4)],
        )
    ):
        write_needle(folder / "normal" / f"seed-{seed}", cells)
    section = needle_section(folder)
    assert [(row["context_length"], row["mean"], row["num_seeds"]) for row in rows(section)] == [
        (128, 0.5, 2),
        (256, 0.5, 1),
    ]
    assert section.incomplete == ("normal seed 1: 1 of 2 cells at 256 tokens",)


def test_a_cell_without_trials_was_not_measured(tmp_path):
    write_needle(tmp_path / "run/normal/seed-0", [cell(128, 0.0, 0, n=0), cell(256, 0.0, 1)])
    assert [row["context_length"] for row in table([tmp_path / "run"])] == [256]


def test_a_half_finished_run_has_the_rows_that_it_has(run):
    shutil.rmtree(run / "skipalign-bias")
    shutil.rmtree(run / "skipalign/seed-2/evaluation")
    counts = {(row["method"], row["num_seeds"]) for row in table([run])}
    assert counts == {("normal", 3), ("skipalign", 2)}


def test_a_run_without_any_result_has_an_empty_table(tmp_path):
    (tmp_path / "recipe.yaml").write_text("base: tiny\n")
    assert table([tmp_path]) == []


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=f"{name}: no (such|run) folder.* give a"):
        table([tmp_path / name])


def test_a_table_is_not_made_without_a_needle_json_that_cannot_be_read(run):
    path = run / "normal/seed-1/evaluation/needle/needle.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(RunError, match=r"needle\.json: not JSON"):
        table([run])


@pytest.mark.parametrize(
    "broken", [{"context_length": 128}, "text", {"context_length": "x", "n": 1, "correct": 1}]
)
def test_a_cell_without_its_counts_is_named(tmp_path, broken):
    write_needle(tmp_path / "run/normal/seed-0", [broken])
    with pytest.raises(RunError, match=r"needle.json: a cell is .* evaluate again"):
        table([tmp_path / "run"])


def test_a_document_of_another_version_or_without_its_parts_is_noted(tmp_path):
    folder = make_training(tmp_path / "mine", "normal", 0)
    write_json(folder / "coverage.json", {"strategy": "pose"})
    (folder / "probe.json").write_text('{"schema_version": 99, "checks": []}')
    found = read_training(folder)
    assert "lacks max_position" in found.unread["coverage"]
    assert "schema_version is 99" in found.unread["probe"]
    assert not {"coverage", "probe"} & set(found.documents)


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
    assert training_window(group([read_run(tmp_path)])) == 128
    shutil.rmtree(tmp_path / "normal")
    assert training_window(group([read_run(tmp_path)])) == 64
    assert training_window([]) is None
