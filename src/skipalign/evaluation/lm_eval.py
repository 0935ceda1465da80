"""EleutherAI's lm-evaluation-harness on our model: its tasks, its prompts, its own numbers.

The model is handed over as we loaded it, with its RoPE settings; everything else is the harness's.
Needs the extra `skipalign[lm-eval]`. The harness's tasks fetch their data from the hub unless it
lies in the local cache; a task in `include_path` may hold code, which the harness runs.
"""

import logging
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import ModelError, RecipeError, RunError
from skipalign.evaluation import write_results
from skipalign.progress import Bar, Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign import generation

TASK = "lm_eval"
_COLUMNS = ("name", "n", "mean", "stderr", "low", "high")
_NORMAL = 1.959964  # standard errors on each side of a 95% interval
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class LmEvalSettings:
    """What the harness is asked for.

    Args:
        tasks: its names for them, such as arc_easy; groups and tags as well.
        num_fewshot: examples in a prompt; None is what each task says.
        limit: only so many samples of each task; None takes all.
        batch_size: prompts a batch.
        apply_chat_template: put the chat template around each prompt.
        include_path: a folder with task files of one's own.
    """

    tasks: tuple[str, ...]
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    apply_chat_template: bool = False
    include_path: str | None = None

    def __post_init__(self) -> None:
        """Raises RecipeError for settings that ask for nothing."""
        if not self.tasks or not all(self.tasks):
            raise RecipeError("tasks are none; name some of the harness's, such as arc_easy")
        for name, least in (("num_fewshot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{name} is {value}; it must be at least {least}")


def evaluate_lm_eval(
    generator: "generation.Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: LmEvalSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Run the harness's tasks; write lm_eval.json, .csv and .png.

    A cell is {name, task, metric, filter, n, mean, stderr, low, high, higher_is_better}, one for
    each figure that the harness gives; mean and stderr are its own, low and high lie 1.96 standard
    errors off (None where it gives no error). `versions` and `num_fewshot` are by task.

    Returns:
        the document in lm_eval.json.

    Raises:
        ModelError: the harness is not installed, or the model is not one of transformers.
        RunError: the harness cannot do what is asked.
    """
    from torch import nn

    model: Any = getattr(generator, "model", None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the backend is {type(generator).__name__}; the harness needs a model of "
            "transformers - evaluate a folder or a hub id"
        )
    with progress.bar(TASK, total=None) as bar, _quiet():
        found = _asked(model, tokenizer, settings, bar)
    document = {
        "task": TASK,
        "settings": asdict(settings),
        "harness": {"lm_eval": metadata.version("lm_eval")},
        "versions": found["versions"],
        "num_fewshot": found["n-shot"],
        "cells": list(cells(found)),
        "summary": {},
    }
    return write_results(Path(out), document, _COLUMNS, _draw)


def _asked(
    model: Any, tokenizer: "PreTrainedTokenizerBase", settings: LmEvalSettings, bar: Bar
) -> dict[str, Any]:
    """Return what the harness returns."""
    try:
        from lm_eval import evaluator
        from lm_eval.models import huggingface
    except ImportError as error:
        raise ModelError(
            f"lm-evaluation-harness is not installed ({error}); pip install 'skipalign[lm-eval]'"
        ) from None
    tasks = _known_tasks(settings)
    room: Any = evaluator
    made: Any = huggingface.HFLM
    adapter = made(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    _count(adapter, model, bar)
    found: Any = room.simple_evaluate(
        adapter,
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        task_manager=tasks,
        log_samples=False,
    )
    return found


def _count(adapter: Any, model: Any, bar: Bar) -> None:
    """Tell the bar of every request that the harness asks of the model.

    Rows of a forward pass over more than one token are requests under way; those that the harness
    answers without a row of their own are counted when their kind of request is done.
    """
    total = 0

    def counting(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(requests: Sequence[Any], *args: Any, **options: Any) -> Any:
            nonlocal total
            total += len(requests)
            bar.set_total(total)
            left = len(requests)

            def seen(_: Any, __: Any, output: Any) -> None:
                nonlocal left
                rows = min(left, len(output.logits)) if output.logits.shape[1] > 1 else 0
                left -= rows
                bar.advance(rows)

            hook = model.register_forward_hook(seen)
            try:
                return ask(requests, *args, **options)
            finally:
                hook.remove()
                bar.advance(left)

        return asked

    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(adapter, name, counting(getattr(adapter, name)))


def _known_tasks(settings: LmEvalSettings) -> Any:
    """Return the harness's index of tasks; of 14,000 files unless one's own folder has them all.

    Raises:
        RunError: a name that is in neither.
    """
    from lm_eval.tasks import TaskManager

    if settings.include_path is not None:
        own: Any = TaskManager(include_path=settings.include_path, include_defaults=False)
        # A group may hold tasks of the harness.
        if set(settings.tasks) <= {*own.all_tasks} - {*own.all_groups, *own.all_tags}:
            return own
    every: Any = TaskManager(include_path=settings.include_path)
    if unknown := [name for name in settings.tasks if name not in every.all_tasks]:
        raise RunError(
            f"lm-evaluation-harness has no task {unknown[0]!r}; `lm_eval ls tasks` lists what it "
            "has, include_path=FOLDER adds your own"
        )
    return every


def cells(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every figure of the harness's results, a group's before those of its tasks."""
    groups = found.get("groups") or {}
    for task, figures in {**groups, **found["results"]}.items():
        better = found.get("higher_is_better", {}).get(task) or {}
        for key, value in figures.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = figures.get(f"{metric}_stderr,{kept}")
            stderr = float(stderr) if isinstance(stderr, (int, float)) else None
            reach = None if stderr is None else _NORMAL * stderr
            yield {
                "name": f"{task} {metric}" + (f" ({kept})" if kept != "none" else ""),
                "task": task,
                "metric": metric,
                "filter": kept,
                "n": _num_samples(found, task),
                "mean": float(value),
                "stderr": stderr,
                "low": None if reach is None else value - reach,
                "high": None if reach is None else value + reach,
                "higher_is_better": better.get(metric, True),
            }


def _num_samples(found: Mapping[str, Any], task: str) -> int:
    """Return the samples of a task, or of all tasks below a group."""
    counts = found["n-samples"]
    if task in counts:
        return int(counts[task]["effective"])
    below = found.get("group_subtasks", {}).get(task, [])
    return sum(_num_samples(found, each) for each in below)


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the harness's own words off stdout, where results go, and off the log."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the figures from 0 to 1 as points with their intervals."""
    from skipalign.evaluation.suites import draw_bars

    drawn = [
        {**cell, "low": cell["mean"], "high": cell["mean"]} if cell["low"] is None else cell
        for cell in document["cells"]
        if 0 <= cell["mean"] <= 1
    ]
    draw_bars({**document, "cells": drawn}, path)
