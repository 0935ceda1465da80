"""scores.py: what is averaged and what is kept apart; differences pair by pair."""

import json
import shutil

import numpy as np
import pytest

from made_runs import (
    DEPTHS,
    DOCUMENTS,
    LENGTHS,
    NEEDLE_SETTINGS,
    TRIALS,
    make_run,
    make_study,
    make_training,
    write_needle,
    write_perplexity,
)
from skipalign.errors import RunError
from skipalign.evaluation.metrics import (
    bootstrap_nested,
    paired_bootstrap,
    share_of_groups,
    wilson_interval,
)
from skipalign.files import read_json, write_json
from skipalign.results import Cell, group, read_run
from skipalign.scores import (
    at_window,
    difference,
    grid,
    only_section,
    paired,
    reference,
    rows,
    score,
    sections,
    settings_digest,
    side,
    table,
)


def cell(tokens, depth, correct, n=4):
    return {"context_length": tokens, "depth": depth, "correct": correct, "n": n}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "tiny")


def groups_of(*folders):
    return group([read_run(folder) for folder in folders])


def section_of(*folders, task="needle"):
    (found,) = sections(groups_of(*folders), task)
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


def test_a_nested_grid_draws_texts_where_another_draws_answers(tmp_path):
    right = [[1, 1, 0, 1], [1, 1, 0, 0]]  # two depths, four texts
    asked = [
        {**cell(96, depth, sum(each)), "trials": [{"correct": bool(one)} for one in each]}
        for depth, each in zip((0.0, 1.0), right, strict=True)
    ]
    texts = ((1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0))
    for name, seeds in (("one", (0,)), ("two", (0, 1))):
        for seed in seeds:
            folder = tmp_path / name / "normal" / f"seed-{seed}"
            make_training(folder, "normal", seed)
            write_needle(folder, asked, nested=True)
    (row,) = rows(section_of(tmp_path / "one"))
    expected = share_of_groups(texts)
    assert (row["mean"], row["low"], row["high"]) == (5 / 8, expected["low"], expected["high"])
    assert row["num_trials"] == 8
    assert row["low"] < wilson_interval(5, 8)[0]
    (row,) = rows(section_of(tmp_path / "two"))
    means = [[1.0, 1.0, 0.0, 0.5]] * 2
    drawn = bootstrap_nested(means, np.random.default_rng(0))
    assert (row["low"], row["high"]) == drawn
    assert drawn != bootstrap_nested([right[0] + right[1]] * 2, np.random.default_rng(0))


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
    found = score([Cell(7, 10)])
    assert (found["low"], found["high"]) == wilson_interval(7, 10)
    assert (found["mean"], found["num_seeds"], found["num_trials"]) == (0.7, 1, 10)


def test_seeds_of_unequal_size_weigh_alike():
    assert score([Cell(10, 10), Cell(0, 30)])["mean"] == 0.5


def test_an_interval_does_not_depend_on_the_order_of_seeds():
    assert score([Cell(3, 8), Cell(7, 8)]) == score([Cell(7, 8), Cell(3, 8)])


def test_grid_holds_every_cell(run):
    section = section_of(run)
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


def test_the_same_method_of_two_runs_is_not_averaged(tmp_path):
    make_run(tmp_path / "one", methods=("normal",))
    make_run(tmp_path / "two", methods=("normal", "skipalign"))
    found = table([tmp_path / "one", tmp_path / "two"])
    names = list(dict.fromkeys(row["method"] for row in found))
    assert names == ["normal (one)", "normal (two)", "skipalign"]
    assert {row["num_seeds"] for row in found} == {3}


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
    # In a nested grid distractors are drawn for the longest prompt, and shorter ones share them.
    nested = {"nested": True, "tokens_per_record": 30.0}
    both = [settings_digest(changed(lengths=each, **nested)) for each in ([1, 2], [1, 4])]
    assert both[0] != both[1]
    assert both[0] == settings_digest(changed(lengths=[2], **nested))


def test_a_setting_that_older_results_do_not_know_has_its_default(run):
    path = run / "normal/seed-1/evaluation/needle/needle.json"
    document = read_json(path)
    assert "question_first" not in document["settings"]
    write_json(path, {**document, "settings": {**document["settings"], "question_first": False}})
    assert section_of(run).settings["question_first"] is False
    write_json(path, {**document, "settings": {**document["settings"], "question_first": True}})
    assert len(sections(groups_of(run), "needle")) == 2


def test_a_seed_with_missing_depths_does_not_count_at_that_length(tmp_path):
    folder = tmp_path / "run"
    for seed, cells in enumerate(
        (
            [cell(128, 0.0, 4), cell(128, 1.0, 0), cell(256, 0.0, 4), cell(256, 1.0, 0)],
            [cell(128, 0.0, 4), cell(128, 1.0, 0), cell(256, 0.0, 4)],
        )
    ):
        write_needle(folder / "normal" / f"seed-{seed}", cells)
    section = section_of(folder)
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


def test_perplexity_is_a_mean_of_values_with_the_bootstrap_of_seeds_then_documents(tmp_path):
    seeds = {0: [1.0, 2.0, 4.5], 1: [3.0, 3.5, 4.0]}
    for seed, values in seeds.items():
        write_perplexity(tmp_path / f"run/normal/seed-{seed}", {256: values})
    (row,) = rows(section_of(tmp_path / "run", task="perplexity"))
    low, high = bootstrap_nested(list(seeds.values()), np.random.default_rng(0))
    assert row == {
        **{"method": "normal", "context_length": 256, "mean": 3.0, "low": low, "high": high},
        **{"num_seeds": 2, "num_trials": 6},
    }


def test_one_seed_of_values_has_the_bootstrap_of_its_documents():
    values = (1.0, 2.0, 4.5, 7.0)
    found = score([Cell(0, 4, values)])
    assert (found["low"], found["high"]) == bootstrap_nested([values], np.random.default_rng(0))


def test_other_places_in_the_text_are_other_conditions():
    one, other = ({"settings": {"seed": 0}, "text": {"stops": stops}} for stops in ([1], [2]))
    assert settings_digest(one) != settings_digest(other)


# --------------------------------------------------------------------------------------- pairs


def by_hand(folder, method, against, tokens, seed):
    """The outcomes at one length of both methods, depth by depth, straight from the files."""
    found = []
    for name in (method, against):
        path = folder / name / f"seed-{seed}/evaluation/needle/needle.trials.jsonl"
        trials = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        same = [trial for trial in trials if trial["context_length"] == tokens]
        same.sort(key=lambda trial: (trial["depth"], trial["trial"]))
        found.append([float(trial["correct"]) for trial in same])
    return tuple(found)


def test_a_difference_is_the_mean_over_seeds_with_the_paired_bootstrap_of_their_trials(run):
    found = paired(section_of(run), reference(groups_of(run)))
    assert [(row["method"], row["context_length"]) for row in found] == [
        (method, tokens) for method in ("skipalign", "skipalign-bias") for tokens in LENGTHS
    ]
    pairs = [by_hand(run, "skipalign", "normal", 1024, seed) for seed in range(3)]
    row = next(row for row in found if row["context_length"] == 1024)
    assert list(row) == [
        *("method", "context_length", "against", "difference", "low", "high"),
        *("num_seeds", "num_trials"),
    ]
    low, high = paired_bootstrap(pairs, np.random.default_rng(0))
    assert (row["low"], row["high"]) == (low, high)
    assert row["difference"] == pytest.approx(np.mean([np.mean(a) - np.mean(b) for a, b in pairs]))
    assert (row["against"], row["num_seeds"]) == ("normal", 3)
    assert row["num_trials"] == 3 * TRIALS * len(DEPTHS)


def test_the_difference_is_that_of_the_means(run):
    means = {(row["method"], row["context_length"]): row["mean"] for row in table([run])}
    for row in paired(section_of(run), reference(groups_of(run))):
        method, tokens = row["method"], row["context_length"]
        expected = means[method, tokens] - means["normal", tokens]
        assert row["difference"] == pytest.approx(expected)


def test_values_are_paired_document_by_document(tmp_path):
    folder = make_study(tmp_path / "study", methods=("normal", "pose"))
    found = paired(section_of(folder, task="perplexity"), reference(groups_of(folder)))
    values = [
        [
            read_json(folder / f"{name}/seed-{seed}/evaluation/perplexity/perplexity.json")
            for name in ("pose", "normal")
        ]
        for seed in range(3)
    ]
    pairs = [tuple(one["cells"][2]["values"] for one in both) for both in values]
    row = next(row for row in found if row["context_length"] == 512)
    assert row == {
        **{"method": "pose", "context_length": 512, "against": "normal"},
        **difference(pairs),
    }
    assert row["num_trials"] == 3 * DOCUMENTS


def test_seeds_are_paired_with_themselves_and_on_their_own_base(tmp_path):
    folder = tmp_path / "run"
    bases = {("normal", 0): "a", ("normal", 1): "b", ("pose", 0): "a", ("pose", 1): "other"}
    for (method, seed), base in bases.items():
        one = folder / method / f"seed-{seed}"
        make_training(one, method, seed, base={"path": base, "revision": None})
    make_training(folder / "pose/seed-7", "pose", 7, base={"path": "a", "revision": None})
    found = paired(section_of(folder), reference(groups_of(folder)))
    assert {row["num_seeds"] for row in found} == {1}
    pair = by_hand(folder, "pose", "normal", 512, 0)
    row = next(row for row in found if row["context_length"] == 512)
    assert row["difference"] == pytest.approx(np.mean(pair[0]) - np.mean(pair[1]))


def test_a_base_is_known_by_its_weights(tmp_path):
    folder = tmp_path / "run"
    for method, digest in (("normal", "a"), ("pose", "a"), ("cream", "b")):
        one = folder / method / "seed-0"
        make_training(one, method, 0, base={"path": method}, base_digest=digest)
    found = paired(section_of(folder), reference(groups_of(folder)))
    assert {row["method"] for row in found} == {"pose"}


def test_a_seed_without_its_single_trials_has_no_part_in_a_difference(run):
    (run / "normal/seed-1/evaluation/needle/needle.trials.jsonl").unlink()
    found = paired(section_of(run), reference(groups_of(run)))
    assert {row["num_seeds"] for row in found} == {2}
    for seed in (0, 2):
        (run / f"normal/seed-{seed}/evaluation/needle/needle.trials.jsonl").unlink()
    assert paired(section_of(run), reference(groups_of(run))) == []


def test_a_seed_with_missing_depths_has_no_part_in_the_difference_there(run):
    path = run / "skipalign/seed-2/evaluation/needle/needle.json"
    document = read_json(path)
    write_json(path, {**document, "cells": document["cells"][:-1]})
    found = paired(section_of(run), reference(groups_of(run)))
    seeds = {r["context_length"]: r["num_seeds"] for r in found if r["method"] == "skipalign"}
    assert seeds == {**dict.fromkeys(LENGTHS, 3), 4096: 2}


def test_the_reference_is_normal_else_the_first_that_was_trained(tmp_path):
    folder = make_study(tmp_path / "study", methods=("base", "pose", "normal"), seeds=(0,))
    assert reference(groups_of(folder)).name == "normal"
    assert reference(groups_of(folder), "pose").name == "pose"
    with pytest.raises(RunError, match=r"--against cream: .* take one of base, pose, normal"):
        reference(groups_of(folder), "cream")
    shutil.rmtree(folder / "normal")
    assert reference(groups_of(folder)).name == "pose"
    shutil.rmtree(folder / "pose")
    assert reference(groups_of(folder)) is None
    assert paired(section_of(folder), None) == []


def test_a_reference_that_was_not_measured_gives_no_differences(run):
    for seed in range(3):
        shutil.rmtree(run / f"normal/seed-{seed}/evaluation")
    assert paired(section_of(run), reference(groups_of(run))) == []


@pytest.mark.parametrize(
    ("low", "high", "found"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (0.0, 0.2, 0), (-0.2, 0.0, 0)]
)
def test_an_interval_that_touches_zero_holds_it(low, high, found):
    assert side({"low": low, "high": high}) == found


def test_the_rows_at_the_training_window(run):
    found = table([run])
    assert {row["context_length"] for row in at_window(found, 128)} == {128}
    assert {row["context_length"] for row in at_window(found, 1000)} == {512}
    assert len(at_window(found, 128)) == 3
    assert at_window(found, 64) == at_window(found, None) == at_window([], 128) == []


def test_the_only_section_of_a_task_that_nobody_measured_is_none(run):
    assert only_section(groups_of(run), "perplexity") is None
