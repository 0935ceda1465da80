"""Stored predictions -> LongBench scores: tasks, categories and averages, each with its interval.

A folder holds one TASK.jsonl for each task, in the official fields. No model is needed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from skipalign.errors import DataError, RunError, did_you_mean
from skipalign.evaluation import thought_is_open
from skipalign.evaluation.longbench_metrics import JIEBA_VERSION, counted_part, metric_of
from skipalign.progress import Progress, Silent, counted

# Scores of unlike protocols never stand in one table.
PROTOCOL, PROTOCOL_E = "longbench-v1", "longbench-e"
CATEGORIES = (
    *("single_doc_qa", "multi_doc_qa", "summarisation"),
    *("few_shot", "synthetic", "code"),
)
BUCKETS = ("0-4k", "4-8k", "8k+")
_BUCKET_STOPS = (4000, 8000)  # words, or characters of Chinese
BOOTSTRAP_SEED, NUM_RESAMPLES = 0, 2000

# A score in percent, then the same of every resample.
Draws = Float[np.ndarray, " R"]
ByBucket = dict[str, tuple[Draws, int]]
_ALL = "all"
_SILENT = Silent()


@dataclass(frozen=True, slots=True)
class LongBenchTask:
    """One of the 21 tasks; `num_samples` of LongBench and of LongBench-E, None where not in it."""

    name: str
    category: str
    language: Literal["en", "zh", "code"]
    num_samples: int = 200
    num_samples_e: int | None = None


TASKS: dict[str, LongBenchTask] = {
    task.name: task
    for task in (
        LongBenchTask("narrativeqa", "single_doc_qa", "en"),
        LongBenchTask("qasper", "single_doc_qa", "en", num_samples_e=224),
        LongBenchTask("multifieldqa_en", "single_doc_qa", "en", 150, 150),
        LongBenchTask("multifieldqa_zh", "single_doc_qa", "zh"),
        LongBenchTask("hotpotqa", "multi_doc_qa", "en", num_samples_e=300),
        LongBenchTask("2wikimqa", "multi_doc_qa", "en", num_samples_e=300),
        LongBenchTask("musique", "multi_doc_qa", "en"),
        LongBenchTask("dureader", "multi_doc_qa", "zh"),
        LongBenchTask("gov_report", "summarisation", "en", num_samples_e=300),
        LongBenchTask("qmsum", "summarisation", "en"),
        LongBenchTask("multi_news", "summarisation", "en", num_samples_e=294),
        LongBenchTask("vcsum", "summarisation", "zh"),
        LongBenchTask("trec", "few_shot", "en", num_samples_e=300),
        LongBenchTask("triviaqa", "few_shot", "en", num_samples_e=300),
        LongBenchTask("samsum", "few_shot", "en", num_samples_e=300),
        LongBenchTask("lsht", "few_shot", "zh"),
        LongBenchTask("passage_count", "synthetic", "en", num_samples_e=300),
        LongBenchTask("passage_retrieval_en", "synthetic", "en", num_samples_e=300),
        LongBenchTask("passage_retrieval_zh", "synthetic", "zh"),
        LongBenchTask("lcc", "code", "code", 500, 300),
        LongBenchTask("repobench-p", "code", "code", 500, 300),
    )
}
TASKS_E = tuple(name for name, task in TASKS.items() if task.num_samples_e)

# Code counts in every language.
_LANGUAGES = {
    "english": ("en", "code"),
    "chinese": ("zh", "code"),
    "bilingual": ("en", "zh", "code"),
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One stored answer of a model and what it is scored against."""

    text: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] | None
    length: float | None
    unclosed_think: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One task's samples, scored from 0 to 1.

    `too_deep` counts those where the official code ends in a RecursionError, `unclosed_think`
    those whose text ends within a thought.
    """

    values: Float[np.ndarray, " N"]
    lengths: tuple[float | None, ...]
    too_deep: int
    unclosed_think: int


def score_folder(
    folder: str | Path,
    *,
    e: bool = False,
    official_faults: bool = False,
    only: Sequence[str] | None = None,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Score every TASK.jsonl of a folder.

    Args:
        folder: holds predictions; other files are passed over.
        e: score by LongBench-E's three buckets of length.
        official_faults: score 0 where the official code ends in a RecursionError, as it does.
        only: these tasks; None is all.
        progress: where to report tasks.

    Returns:
        `tasks`, `categories` and `averages`, each score in percent with n and a 95% interval;
        with `e` each of them by bucket. Where a category or an average lacks tasks its score is
        None and `missing` names them.

    Raises:
        RunError: no such folder, or nothing in it to score.
        DataError: a file or a line that cannot be scored.
    """
    folder = Path(folder)
    files = {name: path for name, path in _files(folder).items() if only is None or name in only}
    scored = {
        name: score_file(files[name], name, e=e, official_faults=official_faults)
        for name in counted(progress, "score", list(files))
    }
    tasks = {name: task_draws(name, found, e=e) for name, found in scored.items()}
    return {
        "protocol": PROTOCOL_E if e else PROTOCOL,
        "scoring": {
            "official_faults": official_faults,
            "jieba": JIEBA_VERSION,
            "bootstrap_seed": BOOTSTRAP_SEED,
            "num_resamples": NUM_RESAMPLES,
        },
        **summary(tasks, e=e),
        "recursion_errors": {name: found.too_deep for name, found in scored.items()},
        "unclosed_think": {name: found.unclosed_think for name, found in scored.items()},
        "incomplete": _incomplete(scored, e=e),
    }


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of predictions in the order of the tasks."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; give one that holds TASK.jsonl files")
    found = {path.name.removesuffix(".jsonl"): path for path in folder.glob("*.jsonl")}
    if not found:
        raise RunError(f"{folder}: holds no TASK.jsonl, such as qasper.jsonl; give another folder")
    for name, path in found.items():
        if name not in TASKS:
            raise DataError(
                f"{path}: LongBench has no task {name!r}; {did_you_mean(name, [*TASKS])}known: "
                f"{', '.join(TASKS)} - rename the file or take it away"
            )
    return {name: found[name] for name in TASKS if name in found}


def _incomplete(scored: Mapping[str, Scored], *, e: bool) -> dict[str, str]:
    """Return the tasks that have another number of samples than the published data."""
    found: dict[str, str] = {}
    for name, each in scored.items():
        num = TASKS[name].num_samples_e if e else TASKS[name].num_samples
        if num is not None and len(each.values) != num:
            found[name] = f"{len(each.values)} of {num}"
    return found


# --------------------------------------------------------------------------------- one file


def score_file(path: Path, task: str, *, e: bool = False, official_faults: bool = False) -> Scored:
    """Score one file of predictions, sample by sample.

    Raises:
        DataError: a line that cannot be scored.
    """
    predictions = read_predictions(path)
    classes = predictions[-1].classes  # of the last line for all, as in the official code
    if task in ("trec", "lsht") and not classes:
        raise DataError(f"{path}: the last line has no all_classes, which {task} is scored by")
    metric = metric_of(task, classes or ())
    values: list[float] = []
    num_too_deep = 0
    for number, each in enumerate(predictions, start=1):
        if e and each.length is None:
            raise DataError(f"{path} line {number}: has no length; LongBench-E is scored by it")
        said = counted_part(task, each.text)
        try:
            value, failed = metric.best(said, each.answers, official_faults=official_faults)
        except ValueError as error:
            raise DataError(f"{path} line {number}: {error}") from None
        values.append(value)
        num_too_deep += failed > 0
    return Scored(
        values=np.array(values),
        lengths=tuple(each.length for each in predictions),
        too_deep=num_too_deep,
        unclosed_think=sum(each.unclosed_think for each in predictions),
    )


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions in the official fields: pred, answers, all_classes, length.

    Raises:
        DataError: the file cannot be read, is empty, or has a line that is no prediction.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); write it again") from None
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: holds no predictions; take it away, or write it again")
    found: list[Prediction] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            cut = number == len(lines)  # no line end behind it
            cure = "what wrote it was stopped: go on with it, or delete the line" if cut else "mend"
            raise DataError(f"{path} line {number}: not JSON ({error}); {cure}") from None
        prediction = _prediction(row, f"{path} line {number}")
        known = str(row.get("_id", number))
        if known in seen:
            raise DataError(f"{path} line {number}: sample {known!r} stands twice; delete one")
        seen.add(known)
        found.append(prediction)
    return found


def _prediction(row: Any, place: str) -> Prediction:
    required = ("pred", "answers", "all_classes")
    missing = [name for name in required if not isinstance(row, dict) or name not in row]
    if missing:
        raise DataError(
            f"{place}: lacks {', '.join(missing)}; a prediction holds pred, answers, all_classes "
            "and length - write the file again"
        )
    answers, classes, length = row["answers"], row["all_classes"], row.get("length")
    wrong = {
        "pred": (row["pred"], "a text", isinstance(row["pred"], str)),
        "answers": (answers, "a list of texts", _is_list(answers, (str, int, float))),
        "all_classes": (
            *(classes, "a list of texts or null"),
            classes is None or _is_list(classes, (str,)),
        ),
        "length": (length, "a number", length is None or isinstance(length, (int, float))),
    }
    for name, (value, kind, right) in wrong.items():
        if not right:
            shown = json.dumps(value)[:60]
            raise DataError(f"{place}: {name} is {shown}; it must be {kind} - write the file again")
    return Prediction(
        text=row["pred"],
        answers=tuple(str(answer) for answer in answers),
        classes=None if classes is None else tuple(classes),
        length=length,
        unclosed_think=bool(row.get("unclosed_think")) or thought_is_open(row["pred"]),
    )


def _is_list(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(each, kinds) for each in value)


# --------------------------------------------------------------------------------- means


def task_draws(task: str, scored: Scored, *, e: bool = False) -> ByBucket:
    """Return draws and n of a task by bucket; without `e` of all its samples together.

    The resamples of a task depend on its own samples alone. A bucket without samples is left out.
    """
    values = scored.values
    if not e:
        # One after the other, as the official code adds: another order may round otherwise.
        mean = 100 * sum(values.tolist()) / len(values)
        return {_ALL: (_with_resamples(mean, values, task, 0), len(values))}
    lengths = np.array([0 if length is None else length for length in scored.lengths])
    places = np.searchsorted(_BUCKET_STOPS, lengths, side="right")
    found: ByBucket = {}
    for place, bucket in enumerate(BUCKETS):
        if len(inside := values[places == place]):
            mean = 100 * float(inside.mean())
            found[bucket] = (_with_resamples(mean, inside, task, place), len(inside))
    return found


def _with_resamples(mean: float, values: Float[np.ndarray, " N"], task: str, place: int) -> Draws:
    rng = np.random.default_rng([BOOTSTRAP_SEED, list(TASKS).index(task), place])
    picks = rng.integers(len(values), size=(NUM_RESAMPLES, len(values)))
    return np.array([mean, *100 * values[picks].mean(axis=1)])


def summary(tasks: Mapping[str, ByBucket], *, e: bool = False) -> dict[str, Any]:
    """Return the entries of tasks, categories and averages, with `e` each by bucket.

    `averages`, each for the languages in its name, code counting in all:

    - english, chinese, bilingual: the mean of six categories, each the mean of its tasks. The
      published averages are the first two.
    - english_and_chinese: the mean of these two.
    - english_tasks, chinese_tasks, bilingual_tasks: the mean of all tasks alike.
    """

    def entry(groups: Sequence[Sequence[str]]) -> dict[str, Any]:
        if e:
            return {bucket: _entry(tasks, groups, bucket) for bucket in BUCKETS}
        return _entry(tasks, groups, _ALL)

    variants = grouped(e=e)
    groups = {variant: list(found.values()) for variant, found in variants.items()}
    if not e:
        groups["english_and_chinese"] = groups["english"] + groups["chinese"]
    averages = {variant: entry(found) for variant, found in groups.items()}
    for variant, found in variants.items():
        averages[f"{variant}_tasks"] = entry([[name for group in found.values() for name in group]])
    return {
        "tasks": {name: entry([[name]]) for name in tasks},
        "categories": {
            variant: {category: entry([group]) for category, group in found.items()}
            for variant, found in variants.items()
        },
        "averages": averages,
    }


def grouped(*, e: bool = False) -> dict[str, dict[str, list[str]]]:
    """Return the tasks of each category, by the languages that are averaged together."""
    members = [task for task in TASKS.values() if not e or task.num_samples_e]
    return {
        variant: {
            category: [
                task.name
                for task in members
                if task.category == category and task.language in languages
            ]
            for category in CATEGORIES
        }
        for variant, languages in _LANGUAGES.items()
        if variant == "english" or not e
    }


def _entry(
    tasks: Mapping[str, ByBucket], groups: Sequence[Sequence[str]], bucket: str
) -> dict[str, Any]:
    """Return the mean over groups of the mean over a group's tasks, if none of them is missing."""
    names = sorted({name for group in groups for name in group}, key=list(TASKS).index)
    found = {name: tasks[name][bucket] for name in names if bucket in tasks.get(name, {})}
    if missing := [name for name in names if name not in found]:
        return {"score": None, "n": 0, "low": None, "high": None, "missing": missing}
    means = [np.mean([found[name][0] for name in group], axis=0) for group in groups]
    draws = np.mean(means, axis=0)
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return {
        "score": round(float(draws[0]), 2),
        "n": sum(n for _, n in found.values()),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }
