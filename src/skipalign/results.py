"""Run folders -> what lies in them: trainings by method and seed, with the cells of their results.

A run folder holds one training, or one per method and seed in METHOD/seed-N/. What a training
has not made yet is absent here, never an error. A folder of results alone, as `evaluate --out`
writes it, is read as a training of which nothing else is known.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from skipalign.errors import RunError
from skipalign.evaluation.tasks import TASKS
from skipalign.files import read_json, read_json_lines

# What a task's scores are shown against, in tokens; a task with one score alone is not here.
TOKENS_OF_TASK = {name: task.against for name, task in TASKS.items() if task.against}

# What a training leaves in its folder.
DOCUMENTS = {
    "training": "training.json",
    "accounting": "accounting.json",
    "probe": "probe.json",
    "coverage": "coverage.json",
    **{name: task.document for name, task in TASKS.items()},
    "seconds": "seconds.json",
}
LOSS = "loss.jsonl"
REQUIRED = {
    **dict.fromkeys(TASKS, ("cells",)),
    # As `score --json` prints it as well.
    "longbench": (
        *("protocol", "scoring", "tasks", "categories", "averages"),
        *("incomplete", "recursion_errors", "unclosed_think"),
    ),
    "probe": ("checks",),
    "accounting": ("sources",),
    "coverage": (
        *("strategy", "max_position", "num_samples", "num_examples"),
        *("covered_fraction", "uniform_distance", "mean_run", "histogram"),
    ),
}


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """Trials that were asked alike: how many were right of how many, or the value of each.

    `texts` holds right (1) and wrong (0) by text, where several answers are about one text.
    """

    correct: int
    n: int
    values: tuple[float, ...] = ()
    texts: tuple[tuple[float, ...], ...] = ()

    @property
    def mean(self) -> float:
        """The share of right answers, or the mean value."""
        return fmean(self.values) if self.values else self.correct / self.n


def pooled(cells: Collection[Cell]) -> Cell:
    """Return all the trials of several cells as one, text by text where all have as many texts."""
    texts = [cell.texts for cell in cells]
    alike = len({len(each) for each in texts}) == 1
    return Cell(
        sum(cell.correct for cell in cells),
        sum(cell.n for cell in cells),
        tuple(value for cell in cells for value in cell.values),
        tuple(tuple(chain(*each)) for each in zip(*texts, strict=True)) if alike else (),
    )


# By tokens and depth; a task without depths has the depth 0.
Cells = dict[int, dict[float, Cell]]


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """One method with one seed. `documents` are those of `DOCUMENTS` that exist and can be read.

    `cells` are each task's by tokens and depth, `loss` is (step, loss) in steps'
    order; `unread` says why a document or the loss is not here although its file is.
    """

    folder: Path
    method: str
    seed: int | None
    documents: Mapping[str, Mapping[str, Any]]
    cells: Mapping[str, Cells]
    loss: tuple[tuple[int, float], ...]
    unread: Mapping[str, str]

    @property
    def label(self) -> str:
        """What tells it from the others of its method."""
        return self.folder.name if self.seed is None else f"seed {self.seed}"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run folder: its recipe's text, its environment, its trainings in the recipe's order."""

    folder: Path
    recipe: str | None
    environment: Mapping[str, Any] | None
    trainings: tuple[Training, ...]
    unread: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The seeds of one method in one run. `name` is unlike that of every other group."""

    name: str
    trainings: tuple[Training, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds that are known, in order."""
        return [training.seed for training in self.trainings if training.seed is not None]

    def documents(self, name: str) -> list[Mapping[str, Any]]:
        """Return the document of every training that has it."""
        found = (training.documents.get(name) for training in self.trainings)
        return [document for document in found if document]


# ---------------------------------------------------------------------------------------- read


def read_run(folder: str | Path) -> Run:
    """Read a run folder, whatever of it there is.

    Raises:
        RunError: `folder` is no run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file, no folder" if folder.exists() else "no such folder"
        raise RunError(f"{folder}: {found}; give a run folder, as `skipalign run` makes it")
    nested = sorted(path for path in folder.glob("*/seed-*") if path.is_dir())
    flat = [folder] if _holds_training(folder) else []
    if not nested and not flat and not (folder / "recipe.yaml").is_file():
        raise RunError(
            f"{folder}: no run folder; it must hold recipe.yaml, training.json, METHOD/seed-N/ or "
            "results, such as longbench.json - give a folder that `skipalign run`, `train` or "
            "`evaluate` made"
        )
    unread: dict[str, str] = {}
    trainings = [read_training(path) for path in nested]
    # A recipe's only training lies in the folder itself, and stays there when more seeds join it.
    known = {(each.method, each.seed) for each in trainings}
    for each in map(read_training, flat):
        if not nested or ("training" in each.documents and (each.method, each.seed) not in known):
            trainings.append(each)
    return Run(
        folder=folder,
        recipe=_read_text(folder / "recipe.yaml", "recipe", unread),
        environment=_read_document(folder / "environment.json", "environment", unread),
        trainings=tuple(sorted(trainings, key=_order)),
        unread=unread,
    )


def read_training(folder: Path) -> Training:
    """Read the folder of one training, whatever of it there is."""
    unread: dict[str, str] = {}
    documents: dict[str, Mapping[str, Any]] = {}
    cells: dict[str, Cells] = {}
    for name in DOCUMENTS:
        path = place_of(folder, name)
        document = _read_document(path, name, unread)
        if document is not None and name in TOKENS_OF_TASK:
            cells[name] = _read_cells(document, name, path, unread)
        if document is not None and name not in unread:
            documents[name] = document
    training = documents.get("training", {})
    for name in [name for name in documents if of_other_weights(documents[name], training)]:
        unread[name] = f"{place_of(folder, name)}: answers of an older model; delete its folder"
        del documents[name]
        cells.pop(name, None)
    nested = folder.name.startswith("seed-")
    number = folder.name.removeprefix("seed-")
    seed = training.get("seed", int(number) if nested and number.isdecimal() else None)
    return Training(
        folder=folder,
        method=str(training.get("method") or (folder.parent if nested else folder).resolve().name),
        seed=seed if isinstance(seed, int) else None,
        documents=documents,
        cells=cells,
        loss=_read_loss(folder / LOSS, unread),
        unread=unread,
    )


def of_other_weights(document: Mapping[str, Any], training: Mapping[str, Any]) -> bool:
    """Whether results are known to be those of another model than the training's."""
    found, made = document.get("model_digest"), training.get("model_digest")
    return bool(found and made and found != made)


def place_of(folder: Path, name: str) -> Path:
    """Return where a document of `DOCUMENTS` is, or would be.

    Results lie in evaluation/TASK/ of a training; without one in TASK/ or in the folder itself.
    """
    usual = folder / DOCUMENTS[name]
    if name not in TASKS or usual.exists():
        return usual
    found = (path for path in (folder / name / usual.name, folder / usual.name) if path.exists())
    return next(found, usual)


def _holds_training(folder: Path) -> bool:
    names = (LOSS, "model", "checkpoints", "data")
    made = any((folder / name).exists() for name in names)
    return made or any(place_of(folder, name).exists() for name in DOCUMENTS)


def _order(training: Training) -> tuple[float, bool, str, int]:
    """The recipe's order; where it is not known, normal first and the others by name."""
    place = training.documents.get("training", {}).get("order")
    known = float(place) if isinstance(place, int) else math.inf
    return known, training.method != "normal", training.method, training.seed or 0


def _read_document(path: Path, name: str, unread: dict[str, str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        document = read_json(path)
        missing = [key for key in REQUIRED.get(name, ()) if key not in document]
        if missing:
            raise RunError(f"{path}: lacks {', '.join(missing)}; delete it and make it again")
    except (RunError, OSError) as error:
        unread[name] = str(error)
        return None
    return document


def _read_cells(
    document: Mapping[str, Any], task: str, path: Path, unread: dict[str, str]
) -> Cells:
    cells: Cells = {}
    for cell in document["cells"]:
        try:
            tokens, depth = _place(cell, task)
            found = _cell(cell, task)
        except (KeyError, TypeError, ValueError, AttributeError):
            kept = "correct" if _is_counted(task) else "values"
            unread[task] = (
                f"{path}: a cell is {_shown(cell)}; it needs {TOKENS_OF_TASK[task]}, n and {kept} "
                "as numbers - delete the file and evaluate again"
            )
            return {}
        if found.n > 0:  # a benchmark may have several cells of one length, one for each subtask
            depths = cells.setdefault(tokens, {})
            depths[depth] = pooled([depths[depth], found]) if depth in depths else found
    return cells


def _is_counted(task: str) -> bool:
    """Whether a trial is right or wrong; else it has a value."""
    return TASKS[task].measure == "accuracy"


def _place(cell: Mapping[str, Any], task: str) -> tuple[int, float]:
    return int(cell[TOKENS_OF_TASK[task]]), float(cell.get("depth") or 0)


def _cell(cell: Mapping[str, Any], task: str) -> Cell:
    if _is_counted(task):
        return Cell(int(cell["correct"]), int(cell["n"]))
    values = tuple(float(value) for value in cell["values"])
    if len(values) != int(cell["n"]) or not all(map(math.isfinite, values)):
        raise ValueError("not n finite values")
    return Cell(0, len(values), values)


def _shown(value: object, width: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def outcomes(training: Training, task: str) -> dict[tuple[int, float], tuple[float, ...]]:
    """Return what each trial came to, in the order asked, by tokens and depth.

    Right is 1 and wrong 0. A cell whose trials were not kept, or are not those that it counts, is
    left out.
    """
    cells = training.cells[task]
    if not _is_counted(task):
        return {
            (tokens, depth): cell.values
            for tokens, depths in cells.items()
            for depth, cell in depths.items()
        }
    found: dict[tuple[int, float], tuple[float, ...]] = {}
    for (tokens, depth), trials in _kept_trials(training, task).items():
        right = tuple(float(trial["correct"]) for trial in trials)
        if cells.get(tokens, {}).get(depth) == Cell(int(sum(right)), len(right)):
            found[tokens, depth] = right
    return found


def _kept_trials(training: Training, task: str) -> dict[tuple[int, float], list[Any]]:
    """Return the trials of each cell, in order: from the document, else from what lies beside it.

    Beside it lies TASK.trials.jsonl with one trial a line.
    """
    document: list[Any] = list(training.documents[task]["cells"])
    if all("trials" in cell for cell in document):
        return {_place(cell, task): cell["trials"] for cell in document}
    beside = place_of(training.folder, task)
    kept: dict[tuple[int, float], list[Any]] = {}
    try:
        lines = read_json_lines(beside.with_suffix(".trials.jsonl"))[1:]
        for trial in sorted(lines, key=lambda line: line["trial"]):
            kept.setdefault(_place(trial, task), []).append(trial)
    except (ValueError, TypeError, KeyError):
        return {}  # the document counts; only what needs the single trials is not known
    return kept


def scores_by_id(training: Training, task: str) -> dict[str, float]:
    """Return the score of each sample of a benchmark, from what lies beside its document.

    Empty where it was not kept, or is not what the document counts.
    """
    document = training.documents.get(task)
    if document is None:
        return {}
    beside = place_of(training.folder, task).with_suffix(".trials.jsonl")
    try:
        found = {str(line["id"]): float(line["score"]) for line in read_json_lines(beside)[1:]}
    except (ValueError, TypeError, KeyError):
        return {}
    counted = sum(cell["n"] for cell in document["cells"])
    return found if len(found) == counted else {}


def _read_text(path: Path, name: str, unread: dict[str, str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    except OSError as error:
        unread[name] = str(error)
        return None


def _read_loss(path: Path, unread: dict[str, str]) -> tuple[tuple[int, float], ...]:
    """Read the loss curve; a resumed run writes some steps twice, the later line counts."""
    losses: dict[int, float] = {}
    num_broken = 0
    for line in (_read_text(path, "loss", unread) or "").splitlines():
        try:
            row = json.loads(line)
            losses[int(row["step"])] = float(row["loss"])
        except (ValueError, KeyError, TypeError):
            num_broken += bool(line.strip())  # a kill leaves half a line
    finite = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    num_broken += len(losses) - len(finite)
    if num_broken:
        unread["loss"] = f"{path}: {num_broken} line(s) hold no step with a finite loss"
    return tuple(sorted(finite.items()))


# --------------------------------------------------------------------------------------- group


def group(runs: Sequence[Run]) -> list[Group]:
    """Put the seeds of a method together; the same method of two runs stays two groups."""
    methods = [{training.method for training in run.trainings} for run in runs]
    groups: list[Group] = []
    for index, run in enumerate(runs):
        others: set[str] = set().union(*methods[:index], *methods[index + 1 :])
        seeds: dict[str, list[Training]] = {}
        for training in run.trainings:
            seeds.setdefault(training.method, []).append(training)
        for method, trainings in seeds.items():
            name = f"{method} ({_short_name(run, runs)})" if method in others else method
            groups.append(Group(name, tuple(trainings)))
    return groups


def _short_name(run: Run, runs: Sequence[Run]) -> str:
    name = run.folder.resolve().name
    same = [other for other in runs if other.folder.resolve().name == name]
    return name if len(same) == 1 else str(run.folder)


def training_window(groups: Iterable[Group]) -> int | None:
    """Return the longest row in tokens that normal training saw, else the shortest such of all."""
    windows = longest_rows(groups)
    return windows.get("normal") or min(windows.values(), default=None)


def longest_rows(groups: Iterable[Group]) -> dict[str, int]:
    """Return the longest row in tokens that the training of each method saw."""
    windows: dict[str, int] = {}
    for each in groups:
        for training in each.trainings:
            window = training.documents.get("training", {}).get("max_row_tokens")
            if isinstance(window, int) and window > 0:
                windows[training.method] = max(window, windows.get(training.method, 0))
    return windows


def rows_of_training(groups: Sequence[Group]) -> str | None:
    """Say how long training rows were: `128 tokens`, `128 tokens, but for long (1,024)`."""
    window, rows = training_window(groups), longest_rows(groups)
    longer = [f"{name} ({rows[name]:,})" for name in rows if rows[name] > (window or 0)]
    but = f", but for {', '.join(longer)}" if longer else ""
    return f"{window:,} tokens{but}" if window else None
