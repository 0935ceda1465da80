"""evaluation: how an answer is graded, and the three files that every task leaves."""

import csv

import pytest

from skipalign.evaluation import SCORES, graded, scores, write_results
from skipalign.evaluation.metrics import wilson_interval
from skipalign.files import read_json

SANDWICH = "eat a sandwich and sit in Dolores Park on a sunny day."


def test_an_answer_is_right_when_it_holds_every_value():
    whole = graded("Ada and Ben", ("Fox", "Gray"), "Ada Gray; Ben Fox.")
    assert (whole["correct"], whole["share_found"]) == (True, 1.0)
    assert (whole["key"], whole["value"]) == ("Ada and Ben", "Fox, Gray")
    half = graded("Ada and Ben", ("Fox", "Gray"), "Ada Gray.")
    assert (half["correct"], half["share_found"]) == (False, 0.5)
    assert graded("Ada", ("Fox",), "")["share_found"] == 0.0


@pytest.mark.parametrize(
    ("value", "answer", "rouge1_recall", "word_share"),
    [
        ("Fox", "Ada fox.", 1.0, 1.0),
        ("Fox", "Ada Foxes.", 0.0, 0.0),
        # Twelve words, "a" twice: the first figure counts it as often as both have it, the
        # second once, over all twelve.
        (SANDWICH, SANDWICH.upper(), 1.0, 11 / 12),
        (SANDWICH, "Sit in a park on a day!", 7 / 12, 6 / 12),
        (SANDWICH, "Sit in a park.", 4 / 12, 4 / 12),
        ("吃三明治", "他吃三个", 2 / 4, 2 / 4),
        ("红门 7号", "７号 红 色", 3 / 4, 3 / 4),  # 红, 门, 7, 号
        ("---", "---", 0.0, 0.0),
    ],
)
def test_secondary_figures(value, answer, rouge1_recall, word_share):
    found = graded("key", (value,), answer)
    assert found["rouge1_recall"] == pytest.approx(rouge1_recall)
    assert found["word_share"] == pytest.approx(word_share)


def test_scores_are_shares_with_their_interval_and_means_beside_them():
    trials = [graded("k", ("Fox", "Gray"), answer) for answer in ("Fox Gray", "Fox", "", "")]
    found = scores(trials)
    low, high = wilson_interval(1, 4)
    assert found == {
        **{"n": 4, "correct": 1, "mean": 0.25, "low": low, "high": high},
        **{"share_found": 0.375, "rouge1_recall": 0.375, "word_share": 0.375},
    }
    assert list(found) == list(SCORES)


def test_a_task_leaves_a_table_a_picture_and_its_document(tmp_path):
    drawn = []

    def draw(document, path):
        drawn.append((document, (tmp_path / "walk.json").exists()))
        path.write_bytes(b"picture")

    document = {"task": "walk", "cells": [{"far": 3, "mean": 0.5, "more": 1}]}
    written = write_results(tmp_path, document, ("far", "mean"), draw)
    assert written == read_json(tmp_path / "walk.json")
    assert drawn == [(document, False)]  # the document comes last: it stands for the whole
    with (tmp_path / "walk.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [["far", "mean"], ["3", "0.5"]]
    assert (tmp_path / "walk.png").read_bytes() == b"picture"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_document_comes_back_as_its_file_holds_it(tmp_path):
    document = {"task": "walk", "settings": {"lengths": (1, 2), "trials": {64: 5}}, "cells": []}
    written = write_results(tmp_path, document, (), lambda _, path: path.write_bytes(b""))
    assert written == read_json(tmp_path / "walk.json")
    assert written["settings"] == {"lengths": [1, 2], "trials": {"64": 5}}
