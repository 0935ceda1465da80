"""longbench_score.py: the 21 official scores; means, intervals, buckets; files that are broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from skipalign.errors import DataError, RunError
from skipalign.evaluation import longbench_metrics, thought_is_open
from skipalign.evaluation.longbench_score import (
    BUCKETS,
    CATEGORIES,
    TASKS,
    TASKS_E,
    grouped,
    read_predictions,
    score_file,
    score_folder,
    summary,
    task_draws,
)

STORED = Path(__file__).parent / "predictions"
OFFICIAL = Path(__file__).parents[2] / "shared/data/predictions/llama3-8b-instruct"
needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason=f"needs the stored answers in {OFFICIAL}"
)


def line(pred="yes", answers=("yes",), all_classes=None, length=100, **more) -> str:
    return json.dumps(
        {"pred": pred, "answers": list(answers), "all_classes": all_classes, "length": length}
        | more
    )


def write(folder: Path, task: str, *lines: str, end: str = "\n") -> Path:
    path = folder / f"{task}.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    return path


@needs_official
@pytest.mark.parametrize("official_faults", [False, pytest.param(True, marks=pytest.mark.long)])
def test_all_21_official_scores_are_reproduced(official_faults: bool):
    expected = json.loads((OFFICIAL / "result.json").read_text())
    assert len(expected) == 21
    found = score_folder(OFFICIAL, official_faults=official_faults)
    assert {name: entry["score"] for name, entry in found["tasks"].items()} == expected
    assert sum(entry["n"] for entry in found["tasks"].values()) == 4750
    assert found["incomplete"] == {}
    assert set(found["recursion_errors"].values()) == {0}  # no answer is long enough


def indel(line: str, right: str) -> float:
    """fuzz.ratio of rapidfuzz: twice the longest common subsequence over both lengths."""
    places = dict.fromkeys(line, 0)
    for place, letter in enumerate(line):
        places[letter] |= 1 << place
    state = (1 << len(line)) - 1
    for letter in right:  # bit by bit: Hyyro 2004
        common = state & places.get(letter, 0)
        state = (state + common) | (state - common)
    common = len(line) - (state & ((1 << len(line)) - 1)).bit_count()
    both = len(line) + len(right)
    return round(100 * (2 * common / both if both else 1.0)) / 100


def rouge_of_google(said: str, right: str) -> float:
    """rougeL of the package rouge_score, without stemming."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    return scorer.score(right, said)["rougeL"].fmeasure


@needs_official
@pytest.mark.parametrize(
    ("task", "other"),
    [
        ("lcc", longbench_metrics.Metric(longbench_metrics.line_of_code, str, indel)),
        ("repobench-p", longbench_metrics.Metric(longbench_metrics.line_of_code, str, indel)),
        pytest.param(
            "multi_news",
            longbench_metrics.Metric(str, str, rouge_of_google),
            marks=pytest.mark.long,
        ),
        ("samsum", longbench_metrics.Metric(str, str, rouge_of_google)),
    ],
)
def test_other_packages_miss_the_official_scores(task: str, other, monkeypatch):
    expected = json.loads((OFFICIAL / "result.json").read_text())[task]
    path = OFFICIAL / f"{task}.jsonl"
    ours = round(100 * float(score_file(path, task).values.mean()), 2)
    monkeypatch.setitem(longbench_metrics._BY_TASK, task, other)
    theirs = round(100 * float(score_file(path, task).values.mean()), 2)
    assert ours == expected != theirs


@needs_official
def test_buckets_are_those_of_longbench_e(tmp_path):
    for task in ("qasper", "passage_retrieval_en"):
        shutil.copy(OFFICIAL / f"{task}.jsonl", tmp_path)
    found = score_folder(tmp_path, e=True)
    rows = [json.loads(each) for each in (OFFICIAL / "qasper.jsonl").read_text().splitlines()]
    lengths = [row["length"] for row in rows]
    borders = ((0, 4000), (4000, 8000), (8000, 1e9))
    counts = [sum(low <= length < high for length in lengths) for low, high in borders]
    entries = found["tasks"]["qasper"]
    assert [entries[bucket]["n"] for bucket in BUCKETS] == counts
    plain = score_folder(tmp_path)["tasks"]["qasper"]["score"]
    weighted = sum(entry["score"] * entry["n"] for entry in entries.values()) / len(rows)
    assert weighted == pytest.approx(plain, abs=0.01)
    assert {*found["categories"]} == {"english"}
    empty = {"score": None, "n": 0, "low": None, "high": None, "missing": ["passage_retrieval_en"]}
    assert found["tasks"]["passage_retrieval_en"]["0-4k"] == empty


def test_a_length_at_the_border_is_in_the_upper_bucket(tmp_path):
    lengths = [0, 3999, 4000, 7999, 8000, 90000]
    write(tmp_path, "qasper", *(line(length=length) for length in lengths))
    found = score_folder(tmp_path, e=True)["tasks"]["qasper"]
    assert {bucket: entry["n"] for bucket, entry in found.items()} == dict.fromkeys(BUCKETS, 2)


def test_the_sets_are_those_published():
    assert len(TASKS) == 21
    assert sum(task.num_samples for task in TASKS.values()) == 4750
    assert len(TASKS_E) == 13
    groups = grouped()
    assert {variant: sum(map(len, found.values())) for variant, found in groups.items()} == {
        "english": 16, "chinese": 7, "bilingual": 21,
    }  # fmt: skip
    assert all(tuple(found) == CATEGORIES for found in groups.values())
    assert sum(map(len, grouped(e=True)["english"].values())) == 13


def test_means_are_over_six_categories_or_over_tasks_by_their_names():
    scores = {name: float(place) for place, name in enumerate(TASKS)}
    found = summary({name: {"all": (np.full(3, score), 2)} for name, score in scores.items()})
    by_category = {
        variant: [np.mean([scores[name] for name in group]) for group in groups.values()]
        for variant, groups in grouped().items()
    }
    averages = {name: entry["score"] for name, entry in found["averages"].items()}
    english, chinese = (float(np.mean(by_category[name])) for name in ("english", "chinese"))
    assert averages["english"] == round(english, 2)
    assert averages["chinese"] == round(chinese, 2)
    assert averages["english_and_chinese"] == round((english + chinese) / 2, 2)
    assert averages["bilingual"] == round(float(np.mean(by_category["bilingual"])), 2)
    assert averages["bilingual_tasks"] == 10.0
    assert found["averages"]["english"]["n"] == 2 * 16
    assert len(set(averages.values())) == 7
    assert found["categories"]["chinese"]["code"] == found["categories"]["english"]["code"]


def test_without_a_task_its_category_and_averages_have_no_score(tmp_path):
    write(tmp_path, "qasper", line())
    found = score_folder(tmp_path)
    assert found["tasks"]["qasper"] == {"score": 100.0, "n": 1, "low": 100.0, "high": 100.0}
    category = found["categories"]["english"]["single_doc_qa"]
    assert category["score"] is None
    assert category["missing"] == ["narrativeqa", "multifieldqa_en"]
    assert found["averages"]["chinese"]["score"] is None
    assert len(found["averages"]["english"]["missing"]) == 15
    assert found["incomplete"] == {"qasper": "1 of 200"}


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = (rng.random(150) < 0.3).astype(float)
        scored = type("Scored", (), {"values": values, "lengths": (None,) * 150})
        (draws, n), = task_draws("qasper", scored).values()  # fmt: skip
        low, high = np.quantile(draws[1:], [0.025, 0.975])
        assert draws[0] == pytest.approx(100 * values.mean())
        assert n == 150
        covered += low <= 30 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_an_interval_depends_on_the_task_s_own_samples_alone(tmp_path):
    for task in ("qasper", "lcc"):
        shutil.copy(STORED / f"{task}.jsonl", tmp_path)
    both = score_folder(tmp_path)["tasks"]
    (tmp_path / "lcc.jsonl").unlink()
    assert score_folder(tmp_path)["tasks"]["qasper"] == both["qasper"]
    assert both["qasper"]["low"] < both["qasper"]["score"] < both["qasper"]["high"]


def test_tasks_are_resampled_independently():
    values = np.arange(30) / 30
    scored = type("Scored", (), {"values": values, "lengths": (100,) * 30})
    first, again, other = (task_draws(task, scored)["all"][0] for task in ("lcc", "lcc", "trec"))
    assert first.tolist() == again.tolist()
    assert abs(np.corrcoef(first[1:], other[1:])[0, 1]) < 0.1


def test_an_average_varies_less_than_its_tasks(tmp_path):
    rng = np.random.default_rng(0)
    for name in grouped()["english"]["multi_doc_qa"]:
        words = ["yes" if draw < 0.5 else "no" for draw in rng.random(60)]
        write(tmp_path, name, *(line(pred=word) for word in words))
    found = score_folder(tmp_path)
    entry = found["categories"]["english"]["multi_doc_qa"]
    widths = [each["high"] - each["low"] for each in found["tasks"].values()]
    assert entry["n"] == 180
    assert 0.4 * np.mean(widths) < entry["high"] - entry["low"] < 0.75 * np.mean(widths)


def test_the_classes_of_the_last_line_count_for_the_whole_file(tmp_path):
    lines = [line("Date", ["Date"], ["Date"]), line("Food Date", ["Food"], ["Food"])]
    path = write(tmp_path, "trec", *lines)
    assert score_file(path, "trec").values.tolist() == [0.0, 1.0]


def test_recursion_errors_are_counted_and_scored_as_asked(tmp_path):
    many = " ".join(f"w{place}" for place in range(1500))
    write(tmp_path, "gov_report", line(many, [many, many + " x"]), line("a b", ["a b"]))
    true = score_folder(tmp_path)
    old = score_folder(tmp_path, official_faults=True)
    assert true["tasks"]["gov_report"]["score"] == 100.0
    assert old["tasks"]["gov_report"]["score"] == 50.0
    assert true["recursion_errors"] == old["recursion_errors"] == {"gov_report": 1}


def test_thoughts_that_do_not_end_are_counted(tmp_path):
    assert thought_is_open("<think> so")
    assert thought_is_open("<think> a </think> b <think>\nc")
    assert not thought_is_open("<think> a\n </think> b")
    assert not thought_is_open("no thought")
    answers = [line("<think> hm"), line("<think></think> yes"), line("hm", unclosed_think=True)]
    write(tmp_path, "qasper", *answers)
    assert score_folder(tmp_path)["unclosed_think"] == {"qasper": 2}


def test_other_files_are_passed_over(tmp_path):
    write(tmp_path, "qasper", line(), "", line())
    (tmp_path / "result.json").write_text("{}")
    assert score_folder(tmp_path)["tasks"]["qasper"]["n"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"pred": "x", "answers": ["y"], "all_', r"line 2: not JSON .*was stopped: go on with it"),
        ("[1]\n", "line 2: lacks pred, answers, all_classes"),
        ('{"pred": "x"}\n', "line 2: lacks answers, all_classes"),
        (line(pred=3) + "\n", "line 2: pred is 3; it must be a text"),
        (line(answers=[["x"]]) + "\n", r"line 2: answers is \[\[.*must be a list of texts"),
        (line(all_classes="x") + "\n", "line 2: all_classes is .*a list of texts or null"),
        (line(length="9") + "\n", 'line 2: length is "9"; it must be a number'),
    ],
)
def test_a_broken_line_ends_in_one_clear_line(tmp_path, text: str, message: str):
    path = write(tmp_path, "qasper", line(), text, end="")
    with pytest.raises(DataError, match=message) as caught:
        score_folder(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_files_end_in_one_clear_line(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        score_folder(tmp_path / "none")
    with pytest.raises(RunError, match=r"holds no TASK\.jsonl"):
        score_folder(tmp_path)
    path = write(tmp_path, "qaspr", line())
    with pytest.raises(DataError, match="no task 'qaspr'; did you mean 'qasper'"):
        score_folder(tmp_path)
    path.unlink()
    for content, message in ((b"", "holds no predictions"), (b"\xff\n", "not UTF-8")):
        (tmp_path / "lcc.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=message):
            score_folder(tmp_path)


def test_what_a_task_is_scored_by_must_be_there(tmp_path):
    write(tmp_path, "trec", line(all_classes=["yes"]), line())
    with pytest.raises(DataError, match="last line has no all_classes"):
        score_folder(tmp_path)
    (tmp_path / "trec.jsonl").unlink()
    path = write(tmp_path, "passage_retrieval_en", line(), line())
    with pytest.raises(DataError, match="line 1: an answer is 'yes'; it must hold 'Paragraph '"):
        score_folder(tmp_path)
    path.unlink()
    write(tmp_path, "qasper", line(), line(length=None))
    assert score_folder(tmp_path)["tasks"]["qasper"]["n"] == 2
    with pytest.raises(DataError, match="line 2: has no length"):
        score_folder(tmp_path, e=True)


def test_a_sample_that_stands_twice_is_refused(tmp_path):
    write(tmp_path, "qasper", line(_id="a"), line(_id="b"), line(_id="a"))
    with pytest.raises(DataError, match="line 3: sample 'a' stands twice"):
        score_folder(tmp_path)


def test_answers_may_be_numbers(tmp_path):
    path = write(tmp_path, "passage_count", line("8", [8]))
    assert read_predictions(path)[0].answers == ("8",)
    assert score_folder(tmp_path)["tasks"]["passage_count"]["score"] == 100.0
