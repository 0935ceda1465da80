"""gate.py: a method that lost short ability fails, and what cannot be judged is said."""

import json
import math
from dataclasses import replace

import pytest

from made_runs import DOCUMENTS, make_training, write_json, write_perplexity, write_text
from skipalign.errors import RecipeError
from skipalign.gate import Gate, drawn, gate_of, gates, judged
from skipalign.recipe import load
from skipalign.report import study_document, write_report
from skipalign.results import read_run

BEFORE = [1.0 + 0.01 * number for number in range(DOCUMENTS)]


def make(folder, losses, *, gate="{perplexity: 0.01}", seeds=(0, 1, 2)):
    """Write a run of normal and methods whose nats at 128 tokens are higher by so much."""
    write_text(folder / "recipe.yaml", f"base: tiny\ngate: {gate}\n")
    for order, (method, loss) in enumerate({"normal": 0.0, **losses}.items()):
        for seed in seeds:
            one = make_training(folder / method / f"seed-{seed}", method, seed, order=order)
            spread = 0.001 * seed
            values = [value + loss * (1 + spread) for value in BEFORE]
            write_perplexity(one, {128: values, 4096: [9.0] * DOCUMENTS})
    return folder


def verdicts(folder, gate=None):
    run = read_run(folder)
    return {each["method"]: each for each in judged(run, gate or gate_of(run))}


def test_perplexity_is_judged_at_the_training_length_as_a_ratio(tmp_path):
    found = verdicts(make(tmp_path, {"skipalign": math.log(1.009), "pose": math.log(1.012)}))
    assert set(found) == {"skipalign", "pose"}
    good, bad = found["skipalign"], found["pose"]
    assert good["check"] == "perplexity at 128 tokens"
    assert (good["verdict"], good["certain"], good["num_seeds"]) == ("holds", True, 3)
    assert good["loss"] == pytest.approx(0.009, abs=2e-5)
    assert (bad["verdict"], bad["certain"]) == ("fails", True)
    assert bad["low"] <= bad["loss"] <= bad["high"]
    assert bad["loss"] == pytest.approx(0.012, abs=2e-5)


def test_an_interval_that_reaches_past_the_margin_is_not_certain(tmp_path):
    make(tmp_path, {"skipalign": 0.0}, seeds=(0,))
    far = [value + (0.04 if number % 2 else -0.03) for number, value in enumerate(BEFORE)]
    write_perplexity(tmp_path / "skipalign/seed-0", {128: far})
    (found,) = verdicts(tmp_path).values()
    assert (found["verdict"], found["certain"]) == ("holds", False)
    assert found["high"] > 0.01 > found["loss"]
    assert drawn([found], Gate())["rows"][0]["cells"][0]["sure"] == "?"


def test_needle_accuracy_within_the_training_window_is_judged(tmp_path):
    make(tmp_path, {"skipalign": 0.0})
    (found,) = verdicts(tmp_path, Gate(perplexity=None, needle=0.5)).values()
    assert found["check"] == "needle at 128 tokens"
    assert found["verdict"] == "holds"
    document = study_document([tmp_path])
    row = next(r for r in document["paired"] if r["context_length"] == 128)
    assert found["loss"] == pytest.approx(-row["difference"])
    assert (found["low"], found["high"]) == (-row["high"], -row["low"])


def write_short_check(folder, right):
    cells = [{"name": "copy", "n": len(right), "correct": sum(right), "mean": 0.5}]
    write_json(
        folder / "evaluation/short_check/short_check.json",
        {"task": "short_check", "settings": {"data": "built-in"}, "cells": cells, "summary": {}},
    )
    lines = [{"digest": "x"}]
    lines += [{"id": f"copy-{n}", "score": float(value)} for n, value in enumerate(right)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(folder / "evaluation/short_check/short_check.trials.jsonl", text)


def test_short_instructions_are_compared_answer_by_answer(tmp_path):
    make(tmp_path, {"skipalign": 0.0}, seeds=(0, 1))
    for seed in (0, 1):
        write_short_check(tmp_path / f"normal/seed-{seed}", [True] * 10 + [False] * 10)
        write_short_check(tmp_path / f"skipalign/seed-{seed}", [True] * 8 + [False] * 12)
    gate = Gate(perplexity=None, short_check=0.02)
    (found,) = verdicts(tmp_path, gate).values()
    assert (found["check"], found["verdict"], found["num_seeds"]) == ("short_check", "fails", 2)
    assert found["loss"] == pytest.approx(0.1)
    assert found["low"] >= 0, "the answers that both got right or wrong cancel"
    (found,) = verdicts(tmp_path, replace(gate, short_check=0.1 + 1e-9)).values()
    assert found["verdict"] == "holds"
    write_short_check(tmp_path / "skipalign/seed-0", [True] * 8)
    (found,) = verdicts(tmp_path, gate).values()
    assert found["num_seeds"] == 1, "other items are no pair"


def write_harness(folder, **means):
    cells = [
        {
            "name": f"arc {metric}",
            "n": 100,
            "mean": mean,
            "stderr": 0.03,
            "higher_is_better": metric != "ppl",
        }
        for metric, mean in means.items()
    ]
    document = {"settings": {"tasks": ["arc"]}, "harness": {"lm_eval": "0.4"}, "cells": cells}
    write_json(folder / "evaluation/lm_eval/lm_eval.json", document)


def test_every_figure_of_the_harness_that_is_better_when_higher_is_judged(tmp_path):
    make(tmp_path, {"skipalign": 0.0}, seeds=(0,))
    write_harness(tmp_path / "normal/seed-0", acc=0.5, norm=0.6, ppl=10.0)
    write_harness(tmp_path / "skipalign/seed-0", acc=0.45, norm=0.6, ppl=99.0)
    run = read_run(tmp_path)
    found = judged(run, Gate(perplexity=None, lm_eval=0.02))
    assert [(each["check"], each["verdict"]) for each in found] == [
        ("lm_eval: arc acc", "fails"),
        ("lm_eval: arc norm", "holds"),
    ]
    reach = 1.959964 * (2 * 0.03**2) ** 0.5
    assert found[0]["high"] == pytest.approx(0.05 + reach)
    assert not found[0]["certain"]
    other = {"settings": {"tasks": ["arc"]}, "harness": {"lm_eval": "9"}, "cells": []}
    write_json(tmp_path / "normal/seed-0/evaluation/lm_eval/lm_eval.json", other)
    (each,) = judged(read_run(tmp_path), Gate(perplexity=None, lm_eval=0.02))
    assert each["verdict"] == "not judged"


def test_missing_figures_are_told_and_not_taken_for_a_pass(tmp_path):
    make(tmp_path, {"skipalign": 0.0})
    gate = Gate(short_check=0.02)
    found = {each["check"]: each for each in judged(read_run(tmp_path), gate)}
    assert found["short_check"]["verdict"] == "not judged"
    assert found["short_check"]["reason"] == "short_check was not measured for skipalign and normal"
    shown = drawn(list(found.values()), gate)
    assert shown["rows"][0]["verdict"] == "not judged"
    assert shown["unjudged"] == ["skipalign: short_check was not measured for skipalign and normal"]
    for each in ("normal", "skipalign"):
        for seed in range(3):
            write_perplexity(tmp_path / each / f"seed-{seed}", {4096: BEFORE})
    (found,) = verdicts(tmp_path).values()
    assert found["reason"] == "perplexity was not measured within the training length of 128 tokens"
    found = verdicts(tmp_path, Gate(against="plain"))
    assert {each["reason"] for each in found.values()} == {"the run has no method plain"}


def test_seeds_that_are_not_shared_are_no_pair(tmp_path):
    make(tmp_path, {"skipalign": 0.0}, seeds=(0,))
    (tmp_path / "skipalign/seed-0").rename(tmp_path / "skipalign/seed-7")
    path = tmp_path / "skipalign/seed-7/training.json"
    write_json(path, {**json.loads(path.read_text()), "seed": 7})
    (found,) = verdicts(tmp_path).values()
    assert found["verdict"] == "not judged"
    assert "no seed and base in common with normal" in found["reason"]


def test_the_page_says_in_red_who_fails_and_in_words_who_does_not(tmp_path):
    make(tmp_path / "bad", {"skipalign": 0.0, "pose": 0.05}, seeds=(0,))
    text = write_report([tmp_path / "bad"]).read_text(encoding="utf-8")
    assert '<p class="bad">The gate of this recipe fails for 1 of 2 methods: pose.</p>' in text
    assert '<td class="worse">fails</td>' in text
    assert '<td class="">holds</td>' in text
    assert "+5.1%" in text
    assert "at most +1%" in text
    make(tmp_path / "good", {"skipalign": 0.0}, seeds=(0,))
    text = write_report([tmp_path / "good"]).read_text(encoding="utf-8")
    assert "The gate of this recipe holds for the one method." in text
    assert 'class="bad"' not in text
    gate = study_document([tmp_path / "bad"])["gate"]
    assert (gate["against"], gate["perplexity"]) == ("normal", 0.01)
    assert [each["verdict"] for each in gate["verdicts"]] == ["holds", "fails"]


def test_a_missed_gate_is_a_finding_and_ends_with_0(tmp_path, run):
    make(tmp_path / "bad", {"skipalign": 0.0, "pose": 0.05}, seeds=(0,))
    found = run("report", str(tmp_path / "bad"), "--json", "--json-out", "all.json")
    assert found.code == 0
    assert json.loads(found.out)
    verdicts = json.loads((tmp_path / "all.json").read_text())["gate"]["verdicts"]
    assert [each["verdict"] for each in verdicts] == ["holds", "fails"]


def test_a_run_without_a_gate_has_no_such_part(tmp_path):
    make(tmp_path, {}, gate="null", seeds=(0,))
    assert gates([read_run(tmp_path)]) == []
    assert study_document([tmp_path])["gate"] is None
    assert 'id="gate"' not in write_report([tmp_path]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("{perplexity: 1.5}", "perplexity is 1.5; it is a share"),
        ("{perplexity: null}", "no margin is given"),
        ("{perplexity: much}", "margins are numbers"),
        ("{perplexty: 0.1}", "its keys are against, perplexity"),
        ("normal", "its keys are against, perplexity"),
    ],
)
def test_a_gate_that_cannot_be_read_is_named(tmp_path, gate, message):
    write_text(tmp_path / "recipe.yaml", f"base: tiny\ngate: {gate}\n")
    with pytest.raises(RecipeError, match=message):
        gate_of(read_run(tmp_path))
    (found,) = gates([read_run(tmp_path)])
    assert message in found["problem"]
    assert "The gate cannot be judged" in write_report([tmp_path]).read_text(encoding="utf-8")


RECIPE = """\
base: tiny
data: tiny
methods:
  normal: {strategy: contiguous}
  skipalign: {strategy: {name: skipalign, max_position: 1024}}
gate: {against: %s, short_check: 0.02}
"""


def test_a_recipe_states_the_gate_and_keeps_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE % "normal")
    recipe = load(path)
    assert recipe.gate == Gate(against="normal", perplexity=0.01, short_check=0.02)
    path.write_text(recipe.resolved())
    assert load(path).gate == recipe.gate
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(recipe.resolved())
    assert gate_of(read_run(tmp_path / "run")) == recipe.gate
    path.write_text(RECIPE % "norml")
    with pytest.raises(RecipeError, match=r"gate.against: no method 'norml'; did you mean"):
        load(path)
    path.write_text(RECIPE.replace("0.02", "7") % "normal")
    with pytest.raises(RecipeError, match="gate: short_check is 7; it is a share"):
        load(path)
