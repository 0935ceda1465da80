"""provenance.py: settings, cost, data and probe as rows of text."""

import pytest

from made_runs import PROBE, SOURCE, make_run, make_study, make_training
from skipalign.files import read_json, write_json
from skipalign.origin import TO_THE_BIT
from skipalign.provenance import (
    ABSENT,
    accounts,
    cost,
    costs,
    coverages,
    duration,
    flatten,
    is_trained,
    origin_of,
    probes,
    settings,
    signed,
)
from skipalign.results import group, read_run


def groups_of(folder):
    return group([read_run(folder)])


def test_figures_come_from_the_environment_and_from_files_told_by_their_digests(tmp_path):
    extra = {"data_sha256": {"chats": {"chats.jsonl": "ab"}, "prose": {"a.txt": "cd"}}}
    make_run(tmp_path, methods=("normal",), seeds=(0,))
    make_training(tmp_path / "normal/seed-0", "normal", 0, base_digest="ef", **extra)
    found = origin_of(read_run(tmp_path))
    assert found["data"] == {"chats/chats.jsonl": "ab", "prose/a.txt": "cd"}
    assert list(found["bases"].values()) == ["ef"]
    assert found["packages"]["torch"] == "2.13.0+cpu"


def test_what_a_folder_without_an_environment_does_not_say_is_said_to_be_unknown(run):
    (run / "environment.json").unlink()
    found = origin_of(read_run(run))
    untold = [key for key, value in found.items() if value == "not recorded"]
    assert untold == ["commit", "command", "cpu", "num_processes", "data"]
    assert found["exact"]["mean"] == TO_THE_BIT


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "tiny")


def test_flatten_names_nested_values_and_leaves_out_the_version():
    found = flatten(
        {
            "schema_version": 1,
            "rope": {"type": "ntk", "factor": 8.0},
            "sources": [{"name": "a", "weight": None}, {"path": "b"}],
            "gpus": [],
            "train": True,
            "skip_at": ["inner", "outer"],
            "trials": {"128": 8},
        }
    )
    assert found == [
        ("rope.type", "ntk"),
        ("rope.factor", "8.0"),
        ("sources.a.name", "a"),
        ("sources.a.weight", "none"),
        ("sources.1.path", "b"),
        ("gpus", "none"),
        ("train", "yes"),
        ("skip_at", "inner, outer"),
        ("trials.128", "8"),
    ]


def test_settings_are_divided_into_equal_and_differing(run):
    found = settings(groups_of(run))
    assert found["head"] == ["setting", "normal", "skipalign", "skipalign-bias"]
    differing = {row[0]: row[1:] for row in found["differing"]}
    assert differing["strategies.tiny.name"] == ["contiguous", "skipalign", "pose"]
    assert differing["strategies.tiny.max_position"] == ["–", "4096", "4096"]
    # None in two methods, a bias with its own fields in the third.
    assert differing["key_bias.name"] == ["none", "none", "gap"]
    assert "key_bias" not in differing
    equal = dict(found["equal"])
    assert equal["trainer.learning_rate"] == "0.002"
    assert not {"seed", "order", "tokens", "seconds"} & {*equal, *differing}


def test_a_strategy_that_all_sources_share_is_shown_once(tmp_path):
    one, other = {"name": "pose", "num_chunks": 2}, {"name": "pose", "num_chunks": 4}
    for method, strategies in (("a", (one, one)), ("b", (other, other))):
        strategies = dict(zip(("tiny", "prose"), strategies, strict=True))
        make_training(tmp_path / f"run/{method}/seed-0", method, 0, strategies=strategies)
    found = settings(groups_of(tmp_path / "run"))
    assert found["differing"] == [["strategies.all.num_chunks", "2", "4"]]
    strategies = {"tiny": one, "prose": other}
    make_training(tmp_path / "run/c/seed-0", "c", 0, strategies=strategies)
    differing = {row[0]: row[1:] for row in settings(groups_of(tmp_path / "run"))["differing"]}
    assert differing == {
        "strategies.tiny.num_chunks": ["2", "4", "2"],
        "strategies.prose.num_chunks": ["2", "4", "4"],
    }


def test_a_setting_that_differs_by_seed_lists_its_values(tmp_path):
    for seed, steps in enumerate((300, 500)):
        folder = tmp_path / f"normal/seed-{seed}"
        make_training(folder, "normal", seed, trainer={"max_steps": steps})
    assert ("trainer.max_steps", "300; 500") in settings(groups_of(tmp_path))["equal"]


def test_settings_of_many_methods_are_listed_by_method(tmp_path):
    folder = make_study(tmp_path / "study", seeds=(0,))
    found = settings(groups_of(folder))
    by_method = dict(found["by_method"])
    assert list(by_method) == ["most methods", *found["head"][1:]]
    assert by_method["most methods"] == "tiny.max_position 4096; train yes"
    assert by_method["pose"] == "tiny.name pose; tiny.skip_fraction 1.0; tiny.num_chunks 2"
    assert by_method["skipalign-weighted"].endswith("; key_bias.name gap")
    assert by_method["base-ntk"] == "train no"
    assert by_method["normal"] == "tiny.name contiguous"
    assert settings(groups_of(make_run(tmp_path / "few")))["by_method"] == []


SHORT = {
    "normal": {"context_length": 128, "mean": 0.9, "low": 0.8, "high": 1.0}
    | {"num_seeds": 3, "num_trials": 120},
}
LESS = {"skipalign": {"against": "normal", "difference": -0.25, "low": -0.5, "high": -0.125}}


def test_cost_is_the_mean_over_seeds_and_the_sum_of_all(run):
    found = cost(groups_of(run), {}, {})
    row = dict(zip(found["cost_head"], found["cost_rows"][0], strict=True))
    assert row == {
        **{"method": "normal", "seeds": "3", "training time": "48 s", "steps": "300"},
        **{"tokens": "1,228,800", "trained tokens": "96,001", "tokens per row": "128"},
    }
    stages = dict(zip(found["stage_head"], found["stage_rows"][0], strict=True))
    assert stages == {
        "method": "normal",
        "prepare": "3.2 s",
        "train": "48 s",
        "needle": "1 min 36 s",
    }
    # Nine trainings of 3.25 s to prepare and 47.5, 48.5 or 49.5 s to train.
    assert found["cost_total"].startswith("prepare 29 s, train 7 min 16 s, needle 14 min 20 s; ")


def test_cost_stands_beside_the_short_ability_that_it_buys(run):
    found = cost(groups_of(run), SHORT, LESS)
    assert found["cost_head"][-2:] == ["accuracy at 128 tokens", "less normal"]
    last = [[cell.replace("\u00a0", " ") for cell in row[-2:]] for row in found["cost_rows"]]
    assert last == [
        ["0.90 [0.80, 1.00]", ABSENT],
        [ABSENT, "−0.25 [−0.50, −0.12] ▼"],
        [ABSENT, ABSENT],
    ]


def test_a_base_that_is_not_trained_has_no_cost_and_no_coverage(tmp_path):
    folder = make_study(tmp_path / "study", methods=("base-ntk", "normal"), seeds=(0, 1))
    groups = groups_of(folder)
    assert [is_trained(each) for each in groups] == [False, True]
    found = cost(groups, {}, {})
    assert found["cost_rows"][0] == ["base-ntk", "2", *[ABSENT] * 5]
    base, normal = costs(groups, SHORT)
    assert {base[key] for key in ("seconds", "steps", "tokens", "max_row_tokens")} == {None}
    assert (normal["seconds"], normal["steps"]) == (48.0, 300)
    assert (base["short"], normal["short"]["mean"]) == (None, 0.9)
    base, normal = coverages(groups)
    assert set(base.values()) == {"base-ntk", None}
    assert (normal["strategy"], normal["mean_run"]) == ("contiguous", 128.0)


def test_coverage_figures_are_means_over_seeds(run):
    each = coverages(groups_of(run))[1]
    documents = [read_json(run / f"skipalign/seed-{seed}/coverage.json") for seed in range(3)]
    for key in ("covered_fraction", "uniform_distance", "mean_run"):
        assert each[key] == pytest.approx(sum(document[key] for document in documents) / 3)


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "+0.25"), (-0.25, "−0.25"), (0.001, "0.00"), (-0.001, "0.00")]
)
def test_differences_carry_their_sign(value, text):
    assert signed(value, 2) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.24, "8.2 s"), (59.4, "59 s"), (192, "3 min 12 s"), (3900, "1 h 05 min")],
)
def test_durations_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_equal_accounting_is_shown_once(run):
    (found,) = accounts(groups_of(run))
    assert found["name"] == "All trainings"
    assert found["rows"] == [["tiny", "9,612", "9,600", "4", "8", "9,600", "1,105,920", "288,000"]]
    assert ["tiny", "rejected", "empty_answer", "3"] in found["reasons"]
    assert ["tiny", "dropped", "too_long", "8"] in found["reasons"]
    assert ["tiny", "middle_cut", "17"] in found["notes"]
    assert found["problems"] == []


def test_several_sources_have_a_total_row(run):
    path = run / "normal/seed-0/accounting.json"
    document = {"sources": {"a": SOURCE, "b": SOURCE}, "total": {**SOURCE, "rows_read": 19_224}}
    write_json(path, document)
    names = [found["name"] for found in accounts(groups_of(run))]
    assert names[0] == "normal seed 0"
    assert names[1] == "normal seed 1, normal seed 2, skipalign, skipalign-bias"
    rows = accounts(groups_of(run))[0]["rows"]
    assert [row[:2] for row in rows] == [
        ["a", "9,612"],
        ["b", "9,612"],
        ["all sources", "19,224"],
    ]


def test_accounting_that_does_not_add_up_is_said(run):
    path = run / "normal/seed-0/accounting.json"
    document = read_json(path)
    document["sources"]["tiny"]["used"] = 9_599
    write_json(path, document)
    (problem,) = accounts(groups_of(run))[0]["problems"]
    assert problem == "tiny: 9,612 rows read are not 9,599 used + 4 rejected + 8 dropped"


def test_probe_verdicts_are_counted_by_method(run):
    checks = [{**check, "passed": False} for check in PROBE["checks"][:1]]
    write_json(run / "skipalign/seed-1/probe.json", {**PROBE, "checks": checks})
    found = probes(groups_of(run))
    assert found["probes"]["head"][1:] == [check["name"] for check in PROBE["checks"]]
    assert found["probes"]["rows"] == [
        ["normal", "3 of 3 passed", "3 of 3 passed"],
        ["skipalign", "1 of 3 FAILED", "2 of 2 passed"],
        ["skipalign-bias", "3 of 3 passed", "3 of 3 passed"],
    ]
    single = found["verdicts"]["rows"]
    assert len(single) == 17
    assert ["skipalign", "seed 1", checks[0]["name"], "sdpa", "FAILED", "0.31", "2.1e-06"] in single
