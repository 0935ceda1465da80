"""A run that is watched: scores on the way, the same weights, and nothing twice after a kill."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from skipalign.errors import RecipeError
from skipalign.evaluation.stretch import StretchSettings
from skipalign.example_file import ExampleFile
from skipalign.files import read_json, read_json_lines
from skipalign.model import load_tokenizer
from skipalign.recipe import load
from skipalign.watching import LINES, Watching
from test_study import TEXTS
from test_training import fit, make_base, make_data, stop_after, weights

TRAINER = {"max_steps": 6, "save_steps": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, base: Path) -> ExampleFile:
    return make_data(tmp_path_factory.mktemp("data"), base)


def watched(base: Path, out: Path, hay: Path) -> dict[str, Any]:
    hay.write_text("g h i j k l . " * 40)
    settings = StretchSettings(
        distances=(64, 256), context_length=32, trials=2, haystack=str(hay), **TEXTS
    )
    make = partial(
        Watching,
        tokenizer=load_tokenizer(str(base)),
        tasks={"stretch": settings, "needle": None},
        every={"stretch": 2},
        out=out,
    )
    return {"watchers": [make], "logit_scale": "span", "trainer": TRAINER}


def test_a_watched_run_keeps_its_scores_and_ends_with_the_same_weights_killed_or_not(
    base: Path, data: ExampleFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "watched"
    options = watched(base, out, tmp_path / "hay.txt")
    # Killed in step 6: the score of step 4 is of weights that were lost.
    stop_after(monkeypatch, 5, base, data, out, **options)
    assert [line["step"] for line in read_json_lines(out / LINES)] == [2, 4]
    # A task that keeps its trials would refuse those of lost weights, as a GPU's are not the same.
    mark_of_lost_weights = out / "watch/step-4/stretch/left"
    mark_of_lost_weights.touch()
    (out / "watch/step-2/stretch/left").touch()
    fit(base, data, out, seed=4, **options)
    assert not mark_of_lost_weights.exists()
    assert (out / "watch/step-2/stretch/left").exists()
    lines = read_json_lines(out / LINES)
    assert [(line["step"], line["task"]) for line in lines] == [
        (2, "stretch"),
        (4, "stretch"),
        (6, "stretch"),
    ]
    assert {"stretch_64", "stretch_256"} <= set(lines[0]["scores"])
    assert read_json(out / "watch/step-4/stretch/stretch.json")["cells"]
    state = json.loads((out / "checkpoints/checkpoint-6/trainer_state.json").read_text())
    told = [entry["step"] for entry in state["log_history"] if "stretch_64" in entry]
    assert told == [2, 4, 6], "what tensorboard and others get"

    fit(base, data, tmp_path / "alone", seed=4, **{**options, "watchers": ()})
    expected, found = weights(tmp_path / "alone"), weights(out)
    assert all(torch.equal(expected[part], found[part]) for part in expected)


RECIPE = """
base: tiny
data: tiny
strategy: contiguous
evaluation: {stretch: {trials: 3, distances: [64], context_length: 64}}
watch: {stretch: 50}
"""


def test_a_recipe_watches_tasks_that_it_evaluates(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load(path)
    assert recipe.trainings()[0].watch == {"stretch": 50}
    path.write_text(recipe.resolved())
    assert load(path).watch == {"stretch": 50}
    assert "watch" not in recipe.trainings()[0].settings(), "it decides no weight"
    path.write_text(RECIPE.replace("watch: {stretch", "watch: {needle"))
    with pytest.raises(RecipeError, match=r"watch\.needle: `evaluation` has no such task"):
        load(path)
    with pytest.raises(RecipeError, match=r"watch\.stretch"):
        load(path, ["watch={stretch: 0}"])
