"""provenance.py: settings, cost, data and probe as rows of text."""

import pytest

from made_runs import PROBE, SOURCE, make_run, make_training
from skipalign.files import read_json, write_json
from skipalign.provenance import accounts, cost, duration, flatten, probes, settings
from skipalign.results import group, read_run


def groups_of(folder):
    return group([read_run(folder)])


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


def test_a_setting_that_differs_by_seed_lists_its_values(tmp_path):
    for seed, steps in enumerate((300, 500)):
        folder = tmp_path / f"normal/seed-{seed}"
        make_training(folder, "normal", seed, trainer={"max_steps": steps})
    assert ("trainer.max_steps", "300; 500") in settings(groups_of(tmp_path))["equal"]


def test_cost_is_the_mean_over_seeds_and_the_sum_of_all(run):
    found = cost(groups_of(run))
    row = dict(zip(found["cost_head"], found["cost_rows"][0], strict=True))
    assert (row["method"], row["seeds"], row["tokens"]) == ("normal", "3", "1,228,800")
    assert (row["trained tokens"], row["train"], row["stretch"]) == ("96,001", "48 s", "–")
    # Nine trainings of 3.25 s to prepare and 47.5, 48.5 or 49.5 s to train.
    assert found["cost_total"].startswith("prepare 29 s, train 7 min 16 s, needle 14 min 20 s; ")


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
    assert names[1].startswith("normal seed 1, normal seed 2, skipalign seed 0")
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
