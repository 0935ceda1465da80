"""Benchmark documents -> their parts: the scores of tasks, categories and averages, over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Any

from skipalign.evaluation.longbench_score import CATEGORIES
from skipalign.evaluation.longbench_score import TASKS as LONGBENCH_TASKS

_NORMAL = 1.959964  # standard errors on each side of a 95% interval
_WORDS = {
    "single_doc_qa": "single-document QA",
    "multi_doc_qa": "multi-document QA",
    "english_and_chinese": "mean of English and Chinese average",
    "english_tasks": "mean of all English tasks",
    "chinese_tasks": "mean of all Chinese tasks",
    "bilingual_tasks": "mean of all tasks",
}

Score = Mapping[str, Any]
"""{score, n, low, high}, low and high None where there is no interval."""


@dataclass(frozen=True, slots=True)
class Part:
    """A row of a table.

    Attributes:
        name: of a task, a category or an average.
        heading: what it stands under, "" for nothing.
        is_mean: whether it is the mean of others.
    """

    name: str
    heading: str = ""
    is_mean: bool = False


# By part and by bucket of length, which is "" but for LongBench-E.
Scores = dict[Part, dict[str, Score]]


def scores_of(document: Mapping[str, Any]) -> Scores:
    """Return the parts of a document that have a score, in the order of the table."""
    if "protocol" in document:
        return _longbench(document)
    summary = document.get("summary") or {}
    named = {name: each for name, each in summary.items() if _is_score(each)}
    found: Scores = {}
    if "all" in named:
        found[Part("all", is_mean=True)] = {"": _score(named.pop("all"))}
    for cell in document["cells"]:
        found[Part(str(cell["name"]))] = {"": _score(cell)}
    if "mean_of_tasks" in summary:
        found[Part("mean of tasks", is_mean=True)] = {"": _mean_of(document["cells"])}
    for name, each in named.items():
        found[Part(name, "the same, divided otherwise")] = {"": _score(each)}
    return found


def _is_score(value: Any) -> bool:
    return isinstance(value, Mapping) and {"mean", "n", "low", "high"} <= {*value}


def _score(cell: Mapping[str, Any]) -> Score:
    return {"score": cell["mean"], **{key: cell[key] for key in ("n", "low", "high")}}


def _mean_of(cells: Sequence[Mapping[str, Any]]) -> Score:
    """Return the mean of tasks that were asked other questions each."""
    reach = _NORMAL * math.sqrt(sum(_stderr(cell) ** 2 for cell in cells)) / len(cells)
    mean = fmean(cell["mean"] for cell in cells)
    return {
        "score": mean,
        "n": sum(cell["n"] for cell in cells),
        "low": mean - reach,
        "high": mean + reach,
    }


def _stderr(score: Mapping[str, Any]) -> float:
    return (score["high"] - score["low"]) / (2 * _NORMAL)


def _longbench(document: Mapping[str, Any]) -> Scores:
    """Return tasks by category, then the categories and the average of each language."""
    found: Scores = {}
    for category in CATEGORIES:
        for name, task in LONGBENCH_TASKS.items():
            if task.category == category and name in document["tasks"]:
                found[Part(name, words(category))] = _by_bucket(document["tasks"][name])
    averages = dict(document["averages"])
    for variant, categories in document["categories"].items():
        heading = words(variant)
        for category, entry in categories.items():
            found[Part(words(category), heading)] = _by_bucket(entry)
        found[Part(f"{heading} average", heading, is_mean=True)] = _by_bucket(averages.pop(variant))
    for name, entry in averages.items():
        found[Part(words(name), "Other averages", is_mean=True)] = _by_bucket(entry)
    return {part: each for part, each in found.items() if each}


def _by_bucket(entry: Mapping[str, Any]) -> dict[str, Score]:
    every = {"": entry} if "score" in entry else entry
    return {bucket: each for bucket, each in every.items() if each["score"] is not None}


def words(name: str) -> str:
    """Return the name of a category or an average as people read it."""
    text = _WORDS.get(name, name.replace("_", " "))
    return text[:1].upper() + text[1:]


# --------------------------------------------------------------------------------- over seeds


def over_seeds(scores: Sequence[Score]) -> dict[str, Any]:
    """Return {score, n, low, high, num_seeds} of a part that was measured once for each seed.

    All seeds answered the same samples. So what the choice of samples leaves open does not shrink
    with more seeds: to the mean of the seeds' squared errors comes that of the mean over seeds.
    """
    mean = fmean(each["score"] for each in scores)
    known = [each for each in scores if each["low"] is not None]
    found = {"score": mean, "n": scores[0]["n"], "num_seeds": len(scores)}
    if len(scores) == 1 or len(known) < len(scores):
        ends = {key: scores[0][key] if len(scores) == 1 else None for key in ("low", "high")}
        return found | ends
    between = pvariance([each["score"] for each in scores]) / len(scores)
    reach = _NORMAL * math.sqrt(between + fmean(_stderr(each) ** 2 for each in scores))
    return found | {"low": mean - reach, "high": mean + reach}
