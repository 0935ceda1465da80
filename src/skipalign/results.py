"""Run folders -> what was measured in them: methods, seeds, scores with n and interval.

A run folder holds one training, or one per method and seed in METHOD/seed-N/. What a training
has not made yet is absent here, never an error; a score is a mean over seeds, and only seeds
that were examined with the same settings are ever averaged.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from skipalign.errors import RunError
from skipalign.evaluation.metrics import bootstrap_nested, wilson_interval
from skipalign.files import read_json

# What a training leaves in its folder.
DOCUMENTS = {
    "training": "training.json",
    "accounting": "accounting.json",
    "probe": "probe.json",
    "coverage": "coverage.json",
    "needle": "evaluation/needle/needle.json",
    "stretch": "evaluation/stretch/stretch.json",
    "seconds": "seconds.json",
}
LOSS = "loss.jsonl"
REQUIRED = {
    "needle": ("cells",),
    "stretch": ("cells",),
    "probe": ("checks",),
    "accounting": ("sources",),
    "coverage": (
        *("strategy", "max_position", "num_samples", "num_examples"),
        *("covered_fraction", "uniform_distance", "mean_run", "histogram"),
    ),
}
# The task's own name for what its accuracy is shown against, in tokens.
TOKENS_OF_TASK = {"needle": "context_length", "stretch": "distance"}
# No conditions of a score: each length stands for itself, and a text is known by its digest.
NO_CONDITIONS = ("lengths", "distances", "haystack")
BOOTSTRAP_SEED = 0


# (correct, n) by tokens and depth; a task without depths has the depth 0.
Cells = dict[int, dict[float, tuple[int, int]]]


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """One method with one seed. `documents` are those of `DOCUMENTS` that exist and can be read.

    `cells` are each task's (correct, n) by tokens and depth, `loss` is (step, loss) in steps'
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

    def documents(self, name: str) -> list[Mapping[str, Any]]:
        """Return the document of every training that has it."""
        found = (training.documents.get(name) for training in self.trainings)
        return [document for document in found if document]


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """The groups that were examined in one task with the same settings.

    `asked` are the depths that any of them was examined at, by tokens ascending. `incomplete`
    names the seeds whose cells at a length are not all measured; they do not count
    at that length, because their mean would be one over other depths.
    """

    task: str
    digest: str
    settings: Mapping[str, Any]
    groups: tuple[Group, ...]
    asked: Mapping[int, frozenset[float]]
    incomplete: tuple[str, ...]


# ---------------------------------------------------------------------------------------- read


def read_run(folder: str | Path) -> Run:
    """Read a run folder, whatever of it there is.

    Raises:
        RunError: `folder` is no run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; give a run folder, as `skipalign run` makes it")
    nested = sorted(path for path in folder.glob("*/seed-*") if path.is_dir())
    flat = [folder] if not nested and _holds_training(folder) else []
    if not nested and not flat and not (folder / "recipe.yaml").is_file():
        raise RunError(
            f"{folder}: no run folder; it must hold recipe.yaml, training.json or "
            "METHOD/seed-N/ - give a folder that `skipalign run` or `skipalign train` made"
        )
    unread: dict[str, str] = {}
    trainings = [read_training(path) for path in nested or flat]
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
    for name, path in DOCUMENTS.items():
        document = _read_document(folder / path, name, unread)
        if document is not None and name in TOKENS_OF_TASK:
            cells[name] = _read_cells(document, name, folder / path, unread)
        if document is not None and name not in unread:
            documents[name] = document
    training = documents.get("training", {})
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


def _holds_training(folder: Path) -> bool:
    names = (*DOCUMENTS.values(), LOSS, "model", "checkpoints", "data")
    return any((folder / name).exists() for name in names)


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
            tokens = int(cell[TOKENS_OF_TASK[task]])
            correct, n = int(cell["correct"]), int(cell["n"])
            depth = float(cell.get("depth") or 0)
        except (KeyError, TypeError, ValueError, AttributeError):
            unread[task] = (
                f"{path}: a cell is {cell!r}; it needs {TOKENS_OF_TASK[task]}, n and correct as "
                "numbers - delete the file and evaluate again"
            )
            return {}
        if n > 0:
            cells.setdefault(tokens, {})[depth] = (correct, n)
    return cells


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


def sections(groups: Sequence[Group], task: str) -> list[Section]:
    """Divide the groups by the settings that `task` was measured with, in order of appearance."""
    apart: dict[str, list[Group]] = {}
    for each in groups:
        seeds: dict[str, list[Training]] = {}
        for training in each.trainings:
            if document := training.documents.get(task):
                seeds.setdefault(settings_digest(document), []).append(training)
        for digest, trainings in seeds.items():
            apart.setdefault(digest, []).append(Group(each.name, tuple(trainings)))
    return [_section(task, digest, alike) for digest, alike in apart.items()]


def settings_digest(document: Mapping[str, Any]) -> str:
    """Return eight hex digits that are equal for results measured in the same way."""
    text = json.dumps(conditions(document), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def conditions(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make two scores at one length alike or unlike."""
    found = {**(document.get("settings") or {}), **(document.get("prompts") or {})}
    return {key: value for key, value in found.items() if key not in NO_CONDITIONS}


def _section(task: str, digest: str, groups: Sequence[Group]) -> Section:
    asked: dict[int, set[float]] = {}
    for training in (training for each in groups for training in each.trainings):
        for tokens, depths in training.cells[task].items():
            asked.setdefault(tokens, set()).update(depths)
    incomplete: list[str] = []
    for each in groups:
        for training in each.trainings:
            for tokens, depths in training.cells[task].items():
                if len(depths) < len(asked[tokens]):
                    share = f"{len(depths)} of {len(asked[tokens])} cells at {tokens:,} tokens"
                    incomplete.append(f"{each.name} {training.label}: {share}")
    return Section(
        task=task,
        digest=digest,
        settings=conditions(groups[0].trainings[0].documents[task]),
        groups=tuple(groups),
        asked={tokens: frozenset(asked[tokens]) for tokens in sorted(asked)},
        incomplete=tuple(incomplete),
    )


# --------------------------------------------------------------------------------------- score


def rows(section: Section) -> list[dict[str, Any]]:
    """Return {method, context_length or distance, mean, low, high, num_seeds, num_trials}.

    `mean` is the mean over seeds, low and high its 95% interval, `num_trials` the trials of all
    seeds together. Methods in order, tokens ascending.
    """
    key = TOKENS_OF_TASK[section.task]
    found: list[dict[str, Any]] = []
    for each in section.groups:
        seeds = [training.cells[section.task] for training in each.trainings]
        for tokens, depths in section.asked.items():
            whole = [seed[tokens] for seed in seeds if len(seed.get(tokens, {})) == len(depths)]
            counts = tuple(
                (sum(correct for correct, _ in seed.values()), sum(n for _, n in seed.values()))
                for seed in whole
            )
            if counts:
                found.append({"method": each.name, key: tokens, **score(counts)})
    return found


def grid(section: Section, each: Group) -> dict[tuple[int, float], dict[str, Any]]:
    """Return the score of every (tokens, depth) of one group, over the seeds that have it."""
    seeds = [training.cells[section.task] for training in each.trainings]
    found: dict[tuple[int, float], dict[str, Any]] = {}
    for tokens, depths in section.asked.items():
        for depth in sorted(depths):
            counts = tuple(seed[tokens][depth] for seed in seeds if depth in seed.get(tokens, {}))
            if counts:
                found[tokens, depth] = score(counts)
    return found


@lru_cache(maxsize=65536)
def _interval(counts: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    if len(counts) == 1:
        low, high = wilson_interval(*counts[0])
    else:
        trials = [[1.0] * correct + [0.0] * (n - correct) for correct, n in counts]
        low, high = bootstrap_nested(trials, np.random.default_rng(BOOTSTRAP_SEED))
    return float(low), float(high)


def score(counts: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Return mean and 95% interval of (correct, n) of each seed.

    One seed: Wilson. Several: bootstrap over seeds, then over each seed's trials. Equal counts
    give equal intervals, whatever else is on the page.
    """
    low, high = _interval(tuple(sorted(counts)))
    return {
        "mean": sum(correct / n for correct, n in counts) / len(counts),
        "low": low,
        "high": high,
        "num_seeds": len(counts),
        "num_trials": sum(n for _, n in counts),
    }


def table(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return needle accuracy by method and context length, as `report --json` prints it.

    Raises:
        RunError: a folder is no run, a needle.json cannot be read, or the runs were examined
            with unlike settings.
    """
    runs = [read_run(folder) for folder in run_dirs]
    for training in (training for run in runs for training in run.trainings):
        if "needle" in training.unread:
            raise RunError(training.unread["needle"])
    found = sections(group(runs), "needle")
    if len(found) > 1:
        raise RunError(
            f"the needle was measured in {len(found)} unlike ways, which cannot stand in one "
            f"table: {unlike(found[0], found[1])}; report those runs one by one, or open the "
            "page, which shows them apart"
        )
    return rows(found[0]) if found else []


def unlike(one: Section, other: Section) -> str:
    """Say in which settings two sections differ."""
    keys = {**one.settings, **other.settings}
    differing = [key for key in keys if one.settings.get(key) != other.settings.get(key)]
    names = [" and ".join(each.name for each in section.groups) for section in (one, other)]
    return "; ".join(
        f"{key} is {_short(one.settings.get(key))} for {names[0]} and "
        f"{_short(other.settings.get(key))} for {names[1]}"
        for key in differing
    )


def _short(value: object, width: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 3] + "..."


def training_window(groups: Iterable[Group]) -> int | None:
    """Return the longest row in tokens that training saw: normal's, else the shortest of all."""
    windows: dict[str, int] = {}
    for each in groups:
        for training in each.trainings:
            window = training.documents.get("training", {}).get("max_row_tokens")
            if isinstance(window, int) and window > 0:
                windows[training.method] = max(window, windows.get(training.method, 0))
    return windows.get("normal") or min(windows.values(), default=None)
