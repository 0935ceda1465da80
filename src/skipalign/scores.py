"""Results -> scores: means over seeds with their intervals, and paired differences.

A score is a mean over seeds; only seeds that were examined with the same settings are ever
averaged or compared.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from skipalign.errors import RunError
from skipalign.evaluation.metrics import (
    bootstrap_nested,
    paired_bootstrap,
    share_of_groups,
    wilson_interval,
)
from skipalign.evaluation.tasks import TASKS
from skipalign.files import defaults
from skipalign.results import (
    TOKENS_OF_TASK,
    Cell,
    Group,
    Training,
    group,
    outcomes,
    pooled,
    read_run,
)

# No conditions of a score: each length stands for itself, files are known by their digest, and
# what is computed once or together is computed alike.
NO_CONDITIONS = (
    *("lengths", "distances", "haystack", "data", "include_path"),
    *("reuse", "batch_size"),
)
BOOTSTRAP_SEED = 0
# What differences are taken against, where a run has it.
REFERENCE = "normal"


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
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def conditions(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make two scores at one length alike or unlike.

    Results that know nothing of a setting were measured with what is its default now.
    """
    parts = (document.get(part) or {} for part in ("settings", "prompts", "text", "harness"))
    task = document.get("task")
    known = defaults(TASKS[task].settings) if task in TASKS else {}
    found = known | {key: value for part in parts for key, value in part.items()}
    if found.get("nested") and found.get("tokens_per_record"):
        found["longest"] = max(found["lengths"])  # its distractors are those of all lengths
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
        for tokens in section.asked:
            if cells := whole(section, each.trainings, tokens):
                found.append({"method": each.name, key: tokens, **score(cells)})
    return found


def whole(section: Section, trainings: Sequence[Training], tokens: int) -> list[Cell]:
    """Return, of each training that has every depth asked at `tokens`, all its trials there."""
    num = len(section.asked[tokens])
    found = [
        each for each in trainings if len(each.cells.get(section.task, {}).get(tokens, {})) == num
    ]
    return [_pooled(section, each, tokens) for each in found]


def _pooled(section: Section, training: Training, tokens: int) -> Cell:
    """Return all trials at a length as one cell; of a nested grid with the texts they share."""
    cells = training.cells[section.task][tokens]
    cell = pooled(cells.values())
    if not section.settings.get("nested") or len(cells) == 1:
        return cell
    answers = outcomes(training, section.task)
    kept = [answers[tokens, depth] for depth in cells if (tokens, depth) in answers]
    if len(kept) < len(cells):
        return cell
    return replace(cell, texts=tuple(zip(*kept, strict=True)))


def at_window(found: Sequence[Mapping[str, Any]], window: int | None) -> list[Mapping[str, Any]]:
    """Return the needle's rows at the training window, else at the longest length within it."""
    within = {row["context_length"] for row in found if window and row["context_length"] <= window}
    return [row for row in found if within and row["context_length"] == max(within)]


def grid(section: Section, each: Group) -> dict[tuple[int, float], dict[str, Any]]:
    """Return the score of every (tokens, depth) of one group, over the seeds that have it."""
    seeds = [training.cells[section.task] for training in each.trainings]
    found: dict[tuple[int, float], dict[str, Any]] = {}
    for tokens, depths in section.asked.items():
        for depth in sorted(depths):
            cells = [seed[tokens][depth] for seed in seeds if depth in seed.get(tokens, {})]
            if cells:
                found[tokens, depth] = score(cells)
    return found


def score(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return mean and 95% interval of a score that has one cell for each seed.

    One seed of right and wrong answers: Wilson. Else bootstrap over seeds, then over each seed's
    trials. Where several answers are about one text, texts are drawn in place of trials, and for
    one seed the wider of both counts. Equal cells give equal intervals, whatever else is on the
    page.
    """
    low, high = _interval(tuple(sorted(cells)))
    return {
        "mean": sum(cell.mean for cell in cells) / len(cells),
        "low": low,
        "high": high,
        "num_seeds": len(cells),
        "num_trials": sum(cell.n for cell in cells),
    }


@lru_cache(maxsize=65536)
def _interval(cells: tuple[Cell, ...]) -> tuple[float, float]:
    if len(cells) == 1 and cells[0].texts:
        found = share_of_groups(cells[0].texts)
        low, high = found["low"], found["high"]
    elif len(cells) == 1 and not cells[0].values:
        low, high = wilson_interval(cells[0].correct, cells[0].n)
    else:
        trials = [_trials(cell) for cell in cells]
        low, high = bootstrap_nested(trials, np.random.default_rng(BOOTSTRAP_SEED))
    return float(low), float(high)


def _trials(cell: Cell) -> Sequence[float]:
    """Return what a resample draws from: values, the mean of each text, or right and wrong."""
    if cell.texts:
        return [fmean(answers) for answers in cell.texts]
    return cell.values or [1.0] * cell.correct + [0.0] * (cell.n - cell.correct)


# --------------------------------------------------------------------------------------- pairs


def reference(groups: Sequence[Group], name: str | None = None) -> Group | None:
    """Return what differences are taken against: `name`, or `normal`, else the first trained.

    Raises:
        RunError: no method is called `name`.
    """
    if name is not None:
        for each in groups:
            if each.name == name:
                return each
        known = ", ".join(each.name for each in groups)
        raise RunError(f"--against {name}: no such method; take one of {known}")
    named = (each for each in groups if each.trainings[0].method == REFERENCE)
    trained = (
        each
        for each in groups
        if any(document.get("train", True) for document in each.documents("training"))
    )
    return next(named, None) or next(trained, None)


def paired(section: Section, against: Group | None) -> list[dict[str, Any]]:
    """Return {method, context_length or distance, against, difference, low, high, num_seeds, ...}.

    `difference` is the mean over seeds of method less `against`, both trained with that seed from
    the same base and asked the same prompts; low and high its 95% interval by bootstrap over
    seeds, then over the pairs of answers of each, in a nested grid of texts. `num_trials` counts
    the pairs of all seeds. A
    seed that one of the two lacks, or whose single trials were not kept, has no part in it.
    """
    found = next((each for each in section.groups if against and each.name == against.name), None)
    if found is None:
        return []
    key, nested = TOKENS_OF_TASK[section.task], bool(section.settings.get("nested"))
    theirs = {_start(training): outcomes(training, section.task) for training in found.trainings}
    table_rows: list[dict[str, Any]] = []
    for each in section.groups:
        if each.name == found.name:
            continue
        ours = {_start(training): outcomes(training, section.task) for training in each.trainings}
        starts = [start for start in ours if start is not None and start in theirs]
        for tokens, depths in section.asked.items():
            places = [(tokens, depth) for depth in sorted(depths)]
            pairs = [
                (_joined(ours[start], places, nested), _joined(theirs[start], places, nested))
                for start in starts
            ]
            if pairs := [(one, other) for one, other in pairs if one and len(one) == len(other)]:
                row = {"method": each.name, key: tokens, "against": found.name}
                table_rows.append({**row, **difference(pairs)})
    return table_rows


def common_starts(one: Group, other: Group) -> list[tuple[Training, Training]]:
    """Return the trainings of two methods that have seed and base in common, pair by pair."""
    theirs = {_start(training): training for training in other.trainings}
    known = ((training, _start(training)) for training in one.trainings)
    return [(training, theirs[start]) for training, start in known if start and start in theirs]


def _start(training: Training) -> tuple[int, str] | None:
    """Return the seed and the base that a training started from; None where they are not known."""
    document = training.documents.get("training", {})
    base = document.get("base") or {}
    named = json.dumps([base.get("path"), base.get("revision")])
    weights = str(document.get("base_digest") or named)
    return None if training.seed is None else (training.seed, weights)


def _joined(
    found: Mapping[tuple[int, float], tuple[float, ...]],
    places: Sequence[tuple[int, float]],
    nested: bool,
) -> tuple[float, ...]:
    """Return the outcomes of all places one after the other; () where one is not known.

    In a nested grid a trial of all places is about one text, and counts once, by its mean.
    """
    if not all(place in found for place in places):
        return ()
    if nested:
        return tuple(map(fmean, zip(*(found[place] for place in places), strict=True)))
    return tuple(value for place in places for value in found[place])


def difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Return mean and 95% interval of first less second, one pair of outcomes for each seed."""
    low, high = paired_bootstrap(pairs, np.random.default_rng(BOOTSTRAP_SEED))
    return {
        "difference": fmean(fmean(one) - fmean(other) for one, other in pairs),
        "low": low,
        "high": high,
        "num_seeds": len(pairs),
        "num_trials": sum(len(one) for one, _ in pairs),
    }


def side(row: Mapping[str, Any]) -> int:
    """Return on which side of 0 the whole interval lies: 1 above, -1 below, 0 where it holds 0."""
    return int(row["low"] > 0) - int(row["high"] < 0)


# ---------------------------------------------------------------------------------- all of a run


def table(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return needle accuracy by method and context length, as `report --json` prints it.

    Raises:
        RunError: a folder is no run, or as `only_section`.
    """
    section = only_section(group([read_run(folder) for folder in run_dirs]), "needle")
    return rows(section) if section else []


def only_section(groups: Sequence[Group], task: str) -> Section | None:
    """Return the one section of a task; None where nothing was measured.

    Raises:
        RunError: a training's results cannot be read, or not all were measured in one way.
    """
    refuse_unread(groups, task)
    found = sections(groups, task)
    if len(found) > 1:
        raise RunError(
            f"the task {task} was measured in {len(found)} unlike ways, which cannot stand in one "
            f"table: {unlike(found[0], found[1])}; report those runs one by one, or open the "
            "page, which shows them apart"
        )
    return found[0] if found else None


def refuse_unread(groups: Sequence[Group], task: str) -> None:
    """Refuse to leave out results that are there.

    Raises:
        RunError: a training's results cannot be read.
    """
    for training in (training for each in groups for training in each.trainings):
        if task in training.unread:
            raise RunError(training.unread[task])


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
