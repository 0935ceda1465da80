"""parts.py: scores of tasks, categories and averages, over seeds."""

from pathlib import Path

import pytest

from skipalign.evaluation.longbench_score import score_folder
from skipalign.parts import Part, over_seeds, scores_of, words


def test_tasks_come_by_category_then_what_is_known_of_the_categories():
    found = scores_of(score_folder(Path(__file__).parent / "predictions"))
    parts = list(found)
    assert parts[0] == Part("qasper", "Single-document QA")
    assert parts.index(Part("lcc", "Code")) < parts.index(Part("Synthetic", "English"))
    assert found[Part("lcc", "Code")][""]["n"] == 4
    assert not [part for part in parts if part.is_mean], "an average of six lacks some here"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("single_doc_qa", "Single-document QA"), ("few_shot", "Few shot"), ("code", "Code")],
)
def test_names_as_people_read_them(name, shown):
    assert words(name) == shown


def test_seeds_are_averaged_and_samples_in_common_do_not_narrow_the_interval():
    one = {"score": 50.0, "n": 9, "low": 48.0, "high": 52.0}
    assert over_seeds([one]) == {**one, "num_seeds": 1}
    same = over_seeds([one] * 4)
    assert (same["low"], same["high"]) == (pytest.approx(48.0), pytest.approx(52.0))
    other = {**one, "score": 54.0, "low": 52.0, "high": 56.0}
    both = over_seeds([one, other])
    assert both["score"] == 52.0
    # Errors: 2 / 1.96 of the samples, and sqrt(4 / 2) of the mean over two seeds.
    reach = 1.959964 * ((2 / 1.959964) ** 2 + 2.0) ** 0.5
    assert both["high"] - both["score"] == pytest.approx(reach)
    bare = over_seeds([{**one, "low": None, "high": None}] * 2)
    assert (bare["low"], bare["high"]) == (None, None)
