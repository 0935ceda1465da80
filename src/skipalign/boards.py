"""Results -> benchmarks told part by part, methods side by side: LongBench beside published rows.

A part is a task, a category or an average. Scores that were not measured alike stand in tables of
their own; published scores stand beside those of the same protocol and the same samples alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from skipalign.downloads import csv_link
from skipalign.errors import RunError
from skipalign.evaluation import longbench_table
from skipalign.evaluation.longbench_score import BUCKETS, CATEGORIES, PROTOCOL, PROTOCOL_E
from skipalign.evaluation.longbench_score import TASKS as LONGBENCH_TASKS
from skipalign.evaluation.longbench_score import grouped as longbench_groups
from skipalign.evaluation.tasks import TASKS
from skipalign.parts import Part, Scores, over_seeds, scores_of, words
from skipalign.provenance import flatten
from skipalign.results import TOKENS_OF_TASK, Group
from skipalign.scores import conditions, refuse_unread, settings_digest

# The tasks that are no curve over tokens.
NAMES = tuple(name for name in TASKS if name not in TOKENS_OF_TASK)
LONGBENCH = "longbench"
TITLES = {
    "longbench": "LongBench",
    "longbench_v2": "LongBench v2",
    "infinitebench": "InfiniteBench",
    "short_check": "Short instructions",
    "lm_eval": "lm-evaluation-harness",
}
LEADS = {
    "longbench": "Real questions on long texts, asked and scored as LongBench’s authors do, in "
    "percent. A category is the mean of its tasks in one language; an average is the mean of six "
    "categories, or of all tasks where its name says so. Code counts in every language",
    "longbench_v2": "The share of questions with four options that were answered right",
    "infinitebench": "The score of each task from 0 to 1, as its authors score it",
    "short_check": "The share of short instructions that were followed, each scored by a rule: "
    "what a model could do before it learnt far reach",
    "lm_eval": "The harness’s own figures; an interval is 1.96 of its standard errors to each side",
}
PROTOCOLS = {PROTOCOL: "LongBench (21 tasks)", PROTOCOL_E: "LongBench-E (13 tasks by length)"}
_PLACES = {
    name: place
    for place, name in enumerate(
        sorted(LONGBENCH_TASKS, key=lambda name: CATEGORIES.index(LONGBENCH_TASKS[name].category))
    )
}
_LANGUAGES = {"en": "English", "zh": "Chinese", "code": "code"}


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The documents of a task that were measured alike, one for each seed, by method."""

    task: str
    documents: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def first(self) -> Mapping[str, Any]:
        """A document, for what all have in common."""
        return next(iter(self.documents.values()))[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """What all were measured with."""
        if self.task == LONGBENCH:
            return {"protocol": self.first["protocol"], **self.first["scoring"]}
        return conditions(self.first)


# ---------------------------------------------------------------------------- what is alike


def blocks(groups: Sequence[Group], task: str) -> list[Block]:
    """Divide the results of a task by how they were measured, in order of appearance."""
    homes: list[dict[str, list[Mapping[str, Any]]]] = []
    for each in groups:
        for document in each.documents(task):
            home = next((home for home in homes if _fits(task, home, document)), None)
            if home is None:
                homes.append(home := {})
            home.setdefault(each.name, []).append(document)
    return [Block(task, home) for home in homes]


def _fits(
    task: str, home: Mapping[str, Sequence[Mapping[str, Any]]], document: Mapping[str, Any]
) -> bool:
    there = [each for documents in home.values() for each in documents]
    if task == LONGBENCH:  # other tasks may have been asked, so every pair is looked at
        return not any(longbench_table.unlike({"it": document, "one": one}) for one in there)
    return settings_digest(there[0]) == settings_digest(document)


def only_block(groups: Sequence[Group], task: str) -> Block | None:
    """Return the one block of a task; None where nothing was measured.

    Raises:
        RunError: results that cannot be read, or that were not all measured in one way.
    """
    refuse_unread(groups, task)
    found = blocks(groups, task)
    if len(found) > 1:
        if task == LONGBENCH:
            longbench_table.refuse_unlike(_named(found))
        raise RunError(
            f"the task {task} was measured in {len(found)} unlike ways, which cannot stand in one "
            "table; report those runs one by one, or open the page, which shows them apart"
        )
    return found[0] if found else None


def _named(found: Sequence[Block]) -> dict[str, Mapping[str, Any]]:
    """Return one document of each block by its method, told apart where it is the same one."""
    names = [", ".join(block.documents) for block in found]
    return {
        name if names.count(name) == 1 else f"{name} ({place})": block.first
        for place, (name, block) in enumerate(zip(names, found, strict=True), start=1)
    }


# ----------------------------------------------------------------------------------- the rows


def rows(block: Block) -> list[dict[str, Any]]:
    """Return {part, heading, bucket, method, score, low, high, n, num_seeds}, part by part."""
    columns = {
        method: [scores_of(document) for document in documents]
        for method, documents in block.documents.items()
    }
    found: list[dict[str, Any]] = []
    for part in _order(columns.values()):
        for method, seeds in columns.items():
            for bucket in BUCKETS if _is_by_bucket(block) else ("",):
                scores = [seed[part][bucket] for seed in seeds if bucket in seed.get(part, {})]
                if scores and len(scores) == len(seeds):
                    place = {"part": part.name, "heading": part.heading, "bucket": bucket}
                    found.append({**place, "method": method, **over_seeds(scores)})
    return found


def _order(columns: Iterable[Sequence[Scores]]) -> list[Part]:
    """Return all parts; a task that the first document lacks has its place among the tasks."""
    every = dict.fromkeys(part for seeds in columns for seed in seeds for part in seed)
    return sorted(every, key=lambda part: _PLACES.get(part.name, len(_PLACES)))


def _is_by_bucket(block: Block) -> bool:
    return block.task == LONGBENCH and block.first["protocol"] == PROTOCOL_E


# --------------------------------------------------------------------------------- published


def published(block: Block) -> dict[str, Any]:
    """Return {names, scores, note}: what LongBench's authors published for what stands here.

    `scores` are by (heading, part), one for each of `names`; a part of which not all published
    samples were asked has none. Of another protocol there are no names, and `note` says so.
    """
    if block.task != LONGBENCH:
        return {"names": [], "scores": {}, "note": ""}
    known = longbench_table.reference()
    if longbench_table.unlike({"published": known, "here": block.first}):
        note = (
            f"The published rows are of the protocol {known['protocol']}, these scores of "
            f"{block.first['protocol']}: they are not put side by side."
        )
        return {"names": [], "scores": {}, "note": note}
    fewer: dict[str, str] = {}
    for documents in block.documents.values():
        fewer |= {name: n for document in documents for name, n in document["incomplete"].items()}
    models = known["models"].values()
    tasks = {
        (words(task.category), name): [model["tasks"][name] for model in models]
        for name, task in LONGBENCH_TASKS.items()
        if name not in fewer
    }
    note = f"Published: {known['protocol']}, all samples of each task; {known['source']}."
    if fewer:
        note += " They do not stand beside scores of other numbers of samples."
    scores = tasks | _published_means(models, fewer)
    asked = {
        (part.heading, part.name)
        for documents in block.documents.values()
        for part in scores_of(documents[0])
    }
    names = list(known["models"]) if asked & {*scores} else []
    return {"names": names, "scores": scores, "note": note}


def _published_means(
    models: Iterable[Mapping[str, Any]], fewer: Mapping[str, str]
) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for variant, categories in longbench_groups().items():
        if variant not in next(iter(models)):
            continue
        heading = words(variant)
        for category, tasks in categories.items():
            if not {*tasks} & {*fewer}:
                found[heading, words(category)] = [model[variant][category] for model in models]
        if not {task for tasks in categories.values() for task in tasks} & {*fewer}:
            found[heading, f"{heading} average"] = [model[variant]["average"] for model in models]
    return found


# ------------------------------------------------------------------------------------ the page


def boards(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return what the page says of every benchmark that some training was measured in."""
    found = [
        {
            "name": task,
            "title": TITLES.get(task, task.replace("_", " ").capitalize()),
            "lead": LEADS.get(task, "The scores"),
            "blocks": [drawn(block) for block in blocks(groups, task)],
            "apart": _apart(task, groups),
        }
        for task in NAMES
    ]
    return [each for each in found if each["blocks"]]


def _apart(task: str, groups: Sequence[Group]) -> str:
    """Say why a benchmark has several tables; "" where it has one."""
    found = blocks(groups, task)
    if len(found) < 2:
        return ""
    if task != LONGBENCH:
        return "other settings, below each table"
    (first, one), *others = _named(found).items()
    told: list[str] = []
    for name, other in others:
        phrases = longbench_table.unlike({first: one, name: other})
        more = [f"{len(phrases) - 2:,} more such"] if len(phrases) > 2 else []
        told += [*phrases[:2], *more]
    return "; ".join(told)


def drawn(block: Block) -> dict[str, Any]:
    """Return a table: a row for each part, columns for the methods, then the published rows."""
    found = rows(block)
    beside = published(block)
    buckets = BUCKETS if _is_by_bucket(block) else ("",)
    columns = [(method, bucket) for method in block.documents for bucket in buckets]
    cells: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in found:
        place = cells.setdefault((row["heading"], row["part"]), {})
        place[row["method"], row["bucket"]] = row
    means = {
        (part.heading, part.name)
        for documents in block.documents.values()
        for part in scores_of(documents[0])
        if part.is_mean
    }
    digits = 2 if block.task == LONGBENCH else 3
    table_rows = [
        {
            "heading": heading,
            "name": name,
            "is_mean": (heading, name) in means,
            "language": _language(name),
            "cells": [_cell(each.get(column), digits) for column in columns],
            "n": _counts(each, buckets),
            "published": [f"{score:.1f}" for score in beside["scores"].get((heading, name), ())]
            or [None] * len(beside["names"]),
        }
        for (heading, name), each in cells.items()
    ]
    seeds = {row["method"]: row["num_seeds"] for row in found}
    return {
        "title": TITLES.get(block.task, block.task),
        "protocol": PROTOCOLS.get(block.first.get("protocol", ""), ""),
        "methods": [{"name": name, "seeds": seeds.get(name, 0)} for name in block.documents],
        "buckets": [bucket for bucket in buckets if bucket],
        "published": beside["names"],
        "published_note": beside["note"],
        "sections": [
            (heading, list(each))
            for heading, each in groupby(table_rows, key=lambda row: row["heading"])
        ],
        "notes": _notes(block),
        "settings": "; ".join(f"{key} {value}" for key, value in flatten(block.settings)),
        "csv": csv_link(found),
    }


def _cell(row: Mapping[str, Any] | None, digits: int) -> dict[str, str] | None:
    if row is None:
        return None
    known = row["low"] is not None
    ends = f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]" if known else "no interval"
    return {"text": f"{row['score']:.{digits}f}", "interval": ends}


def _counts(cells: Mapping[tuple[str, str], Mapping[str, Any]], buckets: Sequence[str]) -> str:
    """Return n, which is the same for all methods, by bucket where there are several."""
    by_bucket = {bucket: row["n"] for (_, bucket), row in cells.items()}
    return " / ".join(
        f"{by_bucket[bucket]:,}" if bucket in by_bucket else "0" for bucket in buckets
    )


def _language(name: str) -> str:
    task = LONGBENCH_TASKS.get(name)
    return _LANGUAGES[task.language] if task else ""


def _notes(block: Block) -> list[str]:
    """Return what must be known of LongBench's scores besides them, by method."""
    if block.task != LONGBENCH:
        return []
    found: dict[str, None] = {}
    for name, documents in block.documents.items():
        for document in documents:
            found |= dict.fromkeys(f"{name}: {note}" for note in longbench_table.notes(document))
    return list(found)
