"""stretch.py: the same short prompts, the question moved away in positions alone."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from fixtures_eval import Reader, prose, tiny_llama, train_tokenizer
from skipalign.errors import RecipeError
from skipalign.evaluation.metrics import wilson_interval
from skipalign.evaluation.prompts import Prompt
from skipalign.evaluation.stretch import StretchSettings, evaluate_stretch, stretched
from skipalign.files import read_json
from skipalign.transformers_engine import TransformersGenerator


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "text.txt").write_text(prose(), encoding="utf-8")
    return StretchSettings(
        distances=(1000, 200, 5000),
        context_length=200,
        trials=7,
        haystack=str(tmp_path / "text.txt"),
        max_new_tokens=4,
    )


def test_the_drawing_in_the_docstring():
    prompt = Prompt(np.zeros(10, np.int32), needle_start=3, question_start=8)
    assert stretched(prompt, None).tolist() == list(range(10))
    assert stretched(prompt, 40).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 43, 44]
    drawn = next(line for line in stretched.__doc__.splitlines() if "positions   0" in line)
    assert [int(number) for number in re.findall(r"\d+", drawn)][:10] == [*range(8), 43, 44]


def test_only_the_question_moves_and_by_the_distance_asked(tokenizer, settings, tmp_path):
    reader = Reader(tokenizer)
    evaluate_stretch(reader, tokenizer, settings, tmp_path / "out")
    rows = [reader.prompts[start : start + 7] for start in range(0, 28, 7)]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(set(rows[0])) == 7
    for index, positions in enumerate(reader.positions):
        distance = (None, 200, 1000, 5000)[index // 7]
        ids = tokenizer(reader.prompts[index], add_special_tokens=False)["input_ids"]
        text = [tokenizer.decode(ids[place:]).lstrip() for place in range(len(ids))]
        question = max(i for i, rest in enumerate(text) if rest.startswith("What is the secret"))
        needle = max(i for i, rest in enumerate(text) if rest.startswith("The secret number of"))
        jumps = np.flatnonzero(np.diff(positions) != 1) + 1
        if distance is None:
            assert positions.tolist() == list(range(200))
        else:
            assert jumps.tolist() == [question]
            assert positions[question] - positions[needle] == distance


def test_accuracy_by_distance_and_files(tokenizer, settings, tmp_path):
    out = tmp_path / "out"
    document = evaluate_stretch(Reader(tokenizer, farthest=2000), tokenizer, settings, out)
    assert document == read_json(out / "stretch.json")
    assert document["task"] == "stretch"
    cells = document["cells"]
    assert [cell["shifted"] for cell in cells] == [False, True, True, True]
    assert [cell["distance"] for cell in cells[1:]] == [200, 1000, 5000]
    assert 0 < cells[0]["distance"] < 200
    assert cells[0]["distance"] == round(np.mean(cells[0]["realised_distances"]))
    assert [cell["correct"] for cell in cells] == [7, 7, 7, 0]
    for cell in cells:
        assert (cell["low"], cell["high"]) == wilson_interval(cell["correct"], 7)
        assert cell["mean"] == cell["correct"] / 7
        assert all(
            trial["correct"] == (trial["value"] in trial["answer"]) for trial in cell["trials"]
        )
    with (out / "stretch.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [row["distance"] for row in table[1:]] == ["200", "1000", "5000"]
    assert table[3]["mean"] == "0.0"
    from matplotlib.image import imread

    assert min(imread(out / "stretch.png").shape[:2]) > 300


def test_needles_lie_at_all_depths(tokenizer, settings, tmp_path):
    asked = replace(settings, trials=40)
    document = evaluate_stretch(Reader(tokenizer), tokenizer, asked, tmp_path / "out")
    distances = document["cells"][0]["realised_distances"]
    assert min(distances) < 50
    assert max(distances) > 120


def test_a_real_model_is_asked(tokenizer, settings, tmp_path):
    generator = TransformersGenerator(tiny_llama(len(tokenizer)), tokenizer)
    document = evaluate_stretch(generator, tokenizer, settings, tmp_path / "out")
    answers = [[trial["answer"] for trial in cell["trials"]] for cell in document["cells"]]
    assert answers[0] != answers[1] != answers[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": (199, 400)}, r"distances are \[199, 400\] for a context_length of 200"),
        ({"distances": ()}, r"distances are \[\]"),
        ({"distances": (400, 400)}, r"distances are \[400, 400\]"),
        ({"trials": 0}, r"trials are 0"),
        ({"needle": "no value"}, r"needle is"),
    ],
)
def test_settings_that_make_no_prompts(settings, change, message):
    with pytest.raises(RecipeError, match=message):
        replace(settings, **change)
