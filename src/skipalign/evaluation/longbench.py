"""LongBench: 21 tasks of long texts, asked as its authors ask them and scored as they score.

Every answer is a line of predictions/TASK.jsonl in the official fields, and `_id`: started again
after a kill, a sample that has a line is not asked again. `skipalign score` reads the same files.

Source: Bai et al. 2023, arXiv 2308.14508; THUDM/LongBench, pred.py.
Differs: an answer to samsum ends at the model's own end of turn as well, not at EOS and line end
alone, and its line end is not kept.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import DataError, RecipeError, RunError
from skipalign.evaluation import thought_is_open
from skipalign.evaluation.longbench_prompts import (
    DataFiles,
    PromptMaker,
    Sample,
    default_limit,
    max_new_tokens,
)
from skipalign.evaluation.longbench_score import TASKS, TASKS_E, score_folder
from skipalign.files import SCHEMA_VERSION, json_text, named_by, read_json, whole_lines, write_json
from skipalign.generation import Completion, Generator, answers_of, tokens_at_once
from skipalign.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK = "longbench"
PREDICTIONS = "predictions"
# What the answers of a folder were made with.
ASKED = "asked.json"
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class LongBenchSettings:
    """What is asked, and how much of it.

    Args:
        data: the published files: a folder of TASK.jsonl (TASK_e.jsonl for LongBench-E), the hub's
            data.zip, or hub:REPO, such as hub:THUDM/LongBench, to fetch that.
        tasks: which ones; None is all that `data` has.
        e: LongBench-E: 13 tasks, scored in three buckets of length.
        max_prompt_tokens: a longer prompt loses its middle, before the chat template; None is what
            the authors allow for the model's window: a window of 4,096 has 3,500.
        limit: only so many samples of each task; None takes all.
        template_kwargs: what the chat template takes, such as `enable_thinking`.
    """

    data: str
    tasks: tuple[str, ...] | None = None
    e: bool = False
    max_prompt_tokens: int | None = None
    limit: int | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises RecipeError for tasks that are none and limits that leave nothing."""
        known = TASKS_E if self.e else tuple(TASKS)
        unknown = [name for name in self.tasks or () if name not in known]
        if unknown or self.tasks == ():
            named = f"tasks name {', '.join(unknown)}" if unknown else "tasks are none"
            raise RecipeError(
                f"{named}; LongBench{'-E' if self.e else ''} has {', '.join(known)} - "
                "name some of them, or leave tasks out"
            )
        for name in ("max_prompt_tokens", "limit"):
            value, least = getattr(self, name), 2 if name == "max_prompt_tokens" else 1
            if value is not None and value < least:
                raise RecipeError(f"{name} is {value}; it must be at least {least}, or left out")


def evaluate_longbench(
    generator: Generator,
    tokenizer: "PreTrainedTokenizerBase",
    settings: LongBenchSettings,
    out: Path,
    progress: Progress = _SILENT,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Ask every sample once and write longbench.json into `out`, beside the predictions.

    Args:
        generator: the model.
        tokenizer: its tokenizer.
        settings: what is asked.
        out: a folder.
        progress: where to report.
        overwrite: throw away the predictions that `out` holds.

    Returns:
        the document in longbench.json: what `score_folder` returns, with the settings.

    Raises:
        DataError: the data cannot be read.
        RunError: `out` holds answers of another model or to other prompts.
        SkipalignError: see `PromptMaker`.
    """
    files = DataFiles(settings.data, e=settings.e)
    tasks = _tasks(files, settings)
    limit = settings.max_prompt_tokens or _limit_of(generator)
    maker = PromptMaker(tokenizer, limit, settings.template_kwargs)
    folder = Path(out) / PREDICTIONS
    if overwrite:
        for old in (folder / ASKED, *folder.glob("*.jsonl")):
            old.unlink(missing_ok=True)
    asked = _Asked(folder, {"e": settings.e, "model": generator.identity})
    for task in tasks:
        samples, digest = files.samples(task)
        predictions = asked.begin(task, {"data_sha256": digest, **maker.described()})
        some = samples[: settings.limit]
        _ask(generator, maker, task, some, predictions=predictions, progress=progress)
    scored = score_folder(folder, e=settings.e, only=tasks, progress=progress)
    document = {
        "task": TASK,
        "settings": json.loads(json.dumps(asdict(settings))),
        "prompts": {task: asked.tasks[task] for task in tasks},
        **scored,
        "cells": cells(scored),
    }
    write_json(Path(out) / f"{TASK}.json", document)
    return {"schema_version": SCHEMA_VERSION, **document}


def cells(scored: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {name, n, mean, low, high} of all averages and tasks that have a score, from 0 to 1.

    With LongBench-E `name` ends in the bucket.
    """
    found: list[dict[str, Any]] = []
    for name, entry in {**scored["averages"], **scored["tasks"]}.items():
        by_bucket = {"": entry} if "score" in entry else entry
        for bucket, each in by_bucket.items():
            if each["score"] is not None:
                shares = {key: each[key] / 100 for key in ("score", "low", "high")}
                shares["mean"] = shares.pop("score")
                found.append({"name": f"{name} {bucket}".strip(), "n": each["n"], **shares})
    return found


def _tasks(files: DataFiles, settings: LongBenchSettings) -> list[str]:
    """Return the tasks to ask, in the order of the benchmark."""
    known = TASKS_E if settings.e else tuple(TASKS)
    if settings.tasks is not None:
        return [name for name in known if name in settings.tasks]
    found = [name for name in known if files.has(name)]
    if not found:
        ending = "_e.jsonl" if settings.e else ".jsonl"
        raise DataError(
            f"{settings.data}: holds no file of LongBench{'-E' if settings.e else ''}, such as "
            f"qasper{ending}; put the published files there"
        )
    return found


def _limit_of(generator: Generator) -> int:
    """Return the tokens of a filled prompt that the model's window allows."""
    config = getattr(getattr(generator, "model", None), "config", None)
    window = getattr(config, "max_position_embeddings", None)
    if not isinstance(window, int):
        raise RecipeError(
            "max_prompt_tokens is not given, and the window of the model is not known; give "
            "max_prompt_tokens, such as 3500 for a window of 4,096"
        )
    return default_limit(window)


# --------------------------------------------------------------------------------- asking


def _ask(
    generator: Generator,
    maker: PromptMaker,
    task: str,
    samples: Sequence[Sample],
    *,
    predictions: "Predictions",
    progress: Progress,
) -> None:
    """Ask the samples that have no prediction yet."""
    pending = [sample for sample in samples if sample.id not in predictions.ids]
    more: dict[str, Any] = {}
    if task == "samsum":  # models go on with further dialogues; and some begin with a line end
        more = {"more_stop_ids": (maker.newline_id(),), "min_new_tokens": 1}
    most = tokens_at_once(generator)
    thinks = maker.opens_thought(task)
    with progress.bar(task, total=len(pending)) as bar:
        for group in _groups(maker, task, pending, most):
            answers = answers_of(
                generator,
                [ids for _, ids in group],
                max_new_tokens=max_new_tokens(task),
                **more,
            )
            for index, answer in answers:
                is_open = thought_is_open(maker.spoken(answer, thinks))
                predictions.append([_row(group[index][0], answer, is_open=is_open)])
                bar.advance()


def _groups(
    maker: PromptMaker, task: str, samples: Sequence[Sample], most_tokens: int
) -> Iterator[list[tuple[Sample, list[int]]]]:
    """Yield samples with their prompts, as many as are asked together."""
    group: list[tuple[Sample, list[int]]] = []
    num_tokens = 0
    for sample in samples:
        ids = maker.ids(task, sample)
        if group and num_tokens + len(ids) > most_tokens:
            yield group
            group, num_tokens = [], 0
        group.append((sample, ids))
        num_tokens += len(ids)
    if group:
        yield group


def _row(sample: Sample, answer: Completion, *, is_open: bool) -> dict[str, Any]:
    row = {
        "pred": answer.text,
        "answers": sample.answers,
        "all_classes": sample.classes,
        "length": sample.length,
        "_id": sample.id,
    }
    return {**row, "unclosed_think": True} if is_open else row


class Predictions:
    """One task's predictions on disk.

    Attributes:
        ids: of the samples that have one.

    Raises:
        RunError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: set[str] = set()
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                self.ids.add(json.loads(line)["_id"])
            except (ValueError, KeyError, TypeError):
                raise RunError(
                    f"{path} line {number}: no prediction with an _id; delete the file and "
                    "evaluate again"
                ) from None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep predictions, on the disk when this returns."""
        lines = [json_text(row) + "\n" for row in rows]
        with named_by(self.path), self.path.open("ab") as handle:
            handle.write("".join(lines).encode())
            handle.flush()
            os.fsync(handle.fileno())
        self.ids.update(row["_id"] for row in rows)


class _Asked:
    """What the predictions of a folder were made with; those of another model are not gone on with.

    Attributes:
        tasks: what each task's prompts were made of.
    """

    def __init__(self, folder: Path, model: dict[str, Any]) -> None:
        self._folder, self._model = folder, model
        path = folder / ASKED
        found = read_json(path) if path.exists() else {}
        self.tasks: dict[str, dict[str, Any]] = found.get("tasks", {})
        self._refuse_other({key: found.get(key) for key in model} if found else model, model)

    def begin(self, task: str, prompts: dict[str, Any]) -> Predictions:
        """Return a task's predictions, once it is written down what they are made with."""
        predictions = Predictions(self._folder / f"{task}.jsonl")
        prompts = json.loads(json.dumps(prompts))
        if task in self.tasks:
            self._refuse_other(self.tasks[task], prompts)
        elif predictions.ids:
            raise RunError(
                f"{predictions.path}: nothing says what it was made with; evaluate into another "
                "folder, or overwrite it (--overwrite)"
            )
        self.tasks[task] = prompts
        write_json(self._folder / ASKED, {**self._model, "tasks": self.tasks})
        return predictions

    def _refuse_other(self, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        unlike = [key for key in asked if found.get(key) != asked[key]]
        if unlike:
            raise RunError(
                f"{self._folder}: holds predictions that were made with other "
                f"{', '.join(unlike)}; evaluate into another folder, or overwrite it (--overwrite)"
            )
