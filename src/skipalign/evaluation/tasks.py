"""Every evaluation task by its name: recipes, runs, reports and the command line take them here.

A new task is a file beside this one and a line in TASKS. Its function writes TASK.json, whose
`settings` are those asked for and whose `cells` each carry n and a 95% interval (low, high).
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from skipalign.evaluation.babilong import BabilongSettings, evaluate_babilong
from skipalign.evaluation.infinitebench import InfiniteBenchSettings, evaluate_infinitebench
from skipalign.evaluation.lm_eval import LmEvalSettings, evaluate_lm_eval
from skipalign.evaluation.longbench import LongBenchSettings, evaluate_longbench
from skipalign.evaluation.longbench_v2 import LongBenchV2Settings, evaluate_longbench_v2
from skipalign.evaluation.needle import NeedleSettings, check_needle, evaluate_needle
from skipalign.evaluation.needle import by_length as over_depths
from skipalign.evaluation.nolima import NolimaSettings, evaluate_nolima
from skipalign.evaluation.perplexity import (
    PerplexitySettings,
    check_perplexity,
    evaluate_perplexity,
)
from skipalign.evaluation.ruler import RulerSettings, evaluate_ruler
from skipalign.evaluation.short_check import ShortCheckSettings, evaluate_short_check
from skipalign.evaluation.stretch import StretchSettings, check_stretch, evaluate_stretch
from skipalign.evaluation.suites import by_length

Cells = list[dict[str, Any]]


def _refuse_nothing(*_: Any) -> None:
    """Take all settings as they are."""


def _cells(document: Mapping[str, Any]) -> Cells:
    return list(document["cells"])


@dataclass(frozen=True, slots=True)
class Task:
    """What the rooms around a task must know of it.

    Args:
        name: its word in recipes, folders and tables.
        settings: its frozen dataclass; the recipe's schema is made from its fields.
        evaluate: (generator, tokenizer, settings, out, progress) -> the document in TASK.json.
        against: the key of a cell, in tokens, that its score is shown against; None for one score.
        measure: what a cell's mean is: a share of right answers, nats per token, or another score
            from 0 to 1.
        rows: a document's cells by `against` alone, ascending.
        check: (tokenizer, settings) -> None; refuses what cannot be asked, without a model.
    """

    name: str
    settings: type[Any]
    evaluate: Callable[..., dict[str, Any]]
    against: str | None
    measure: Literal["accuracy", "nats", "score"] = "accuracy"
    rows: Callable[[Mapping[str, Any]], Cells] = _cells
    check: Callable[[Any, Any], None] = _refuse_nothing

    @property
    def document(self) -> str:
        """Where a training keeps its results, below the training's folder."""
        return f"evaluation/{self.name}/{self.name}.json"

    @property
    def options(self) -> tuple[str, ...]:
        """The keys of its settings."""
        return tuple(field.name for field in fields(self.settings))

    @property
    def required(self) -> tuple[str, ...]:
        """The keys of its settings that have no default."""
        return tuple(
            field.name
            for field in fields(self.settings)
            if field.default is MISSING and field.default_factory is MISSING
        )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            *("needle", NeedleSettings, evaluate_needle, "context_length"),
            rows=over_depths,
            check=check_needle,
        ),
        Task("stretch", StretchSettings, evaluate_stretch, "distance", check=check_stretch),
        Task(
            *("perplexity", PerplexitySettings, evaluate_perplexity, "context_length"),
            measure="nats",
            check=check_perplexity,
        ),
        Task("longbench", LongBenchSettings, evaluate_longbench, None, measure="score"),
        Task("longbench_v2", LongBenchV2Settings, evaluate_longbench_v2, None),
        Task("infinitebench", InfiniteBenchSettings, evaluate_infinitebench, None, measure="score"),
        Task("babilong", BabilongSettings, evaluate_babilong, "context_length", rows=by_length),
        Task("nolima", NolimaSettings, evaluate_nolima, "context_length"),
        Task(
            *("ruler", RulerSettings, evaluate_ruler, "context_length"),
            measure="score",
            rows=by_length,
        ),
        Task("short_check", ShortCheckSettings, evaluate_short_check, None),
        Task("lm_eval", LmEvalSettings, evaluate_lm_eval, None, measure="score"),
    )
}


def task_of(settings: object) -> Task:
    """Return the task that settings belong to."""
    return next(task for task in TASKS.values() if type(settings) is task.settings)
