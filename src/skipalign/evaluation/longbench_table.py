"""LongBench's scores as a table, beside what its authors published."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from skipalign.errors import RunError
from skipalign.evaluation.longbench_score import BUCKETS, PROTOCOL_E

if TYPE_CHECKING:
    from rich.table import Table

REFERENCE_SHOWN = "GPT-3.5-Turbo-16k"


@cache
def reference() -> dict[str, Any]:
    """Return {protocol, source, models}: what LongBench's authors published for each model.

    A model has its `tasks`, and by language its categories and its `average`.
    """
    folder = resources.files("skipalign.evaluation") / "longbench_data"
    return json.loads((folder / "reference.json").read_text(encoding="utf-8"))


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the scores must know besides them, a sentence each."""
    found: list[str] = []
    cure = "0 as in the official code" if document["scoring"]["official_faults"] else "true value"
    for key, text in (
        ("recursion_errors", f"`rouge` 1.0.1 ends in a RecursionError; scored by the {cure}"),
        ("unclosed_think", "the answer ends within <think> and is scored as it stands"),
    ):
        counts = {name: n for name, n in document[key].items() if n}
        if counts:
            by_task = ", ".join(f"{name} {n}" for name, n in counts.items())
            found.append(f"{sum(counts.values())} sample(s) where {text}: {by_task}")
    lacking = [
        name
        for name, entry in document["averages"].items()
        if any(each["score"] is None for each in _entries(entry))
    ]
    if lacking:
        found.append(f"no average of {', '.join(lacking)}: tasks are missing, named by --json")
    if document["incomplete"]:
        by_task = ", ".join(f"{name} {share}" for name, share in document["incomplete"].items())
        found.append(f"not the published number of samples: {by_task}")
    return found


def refuse_unlike(documents: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to put scores side by side that were not measured alike.

    Args:
        documents: of `score_folder` or `reference`, by the name of what they are the scores of.

    Raises:
        RunError: another protocol, other numbers of samples, or faults of the official code kept
            in one and not in the other.
    """
    if found := unlike(documents):
        raise RunError(
            f"LongBench scores that were not measured alike: {'; '.join(found)} - show them "
            "apart, or score the same samples in the same way"
        )


def unlike(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return in what the first document was measured unlike the others, a phrase each.

    Of another protocol that alone is told: its numbers of samples are others as well.
    """
    (first, one), *others = documents.items()
    known = _conditions(one)
    phrases: list[str] = []
    for name, other in others:
        found = _conditions(other)
        keys = [key for key in known if key in found and found[key] != known[key]]
        phrases += [
            f"{key} is {known[key]} for {first} and {found[key]} for {name}"
            for key in (keys[:1] if "protocol" in keys else keys)
        ]
    return phrases


def _conditions(document: Mapping[str, Any]) -> dict[str, Any]:
    scoring = document.get("scoring", {})
    tasks = document.get("tasks", {})
    return {
        "protocol": document["protocol"],
        **{key: scoring[key] for key in ("official_faults",) if key in scoring},
        **{f"n of {task}": sum(e["n"] for e in _entries(entry)) for task, entry in tasks.items()},
    }


def _entries(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the scores of an entry: one, or one for each bucket."""
    return [entry] if "score" in entry else list(entry.values())


def terminal_table(document: Mapping[str, Any], name: str = "") -> "Table":
    """Return the scores as a table; beside those of LongBench the published ones of one model.

    Args:
        document: of `score_folder`.
        name: of what was scored, for the title.
    """
    from rich.table import Table
    from rich.text import Text

    by_bucket = document["protocol"] == PROTOCOL_E
    columns = BUCKETS if by_bucket else ("score",)
    title = f"{name}{': ' if name else ''}{document['protocol']}, percent [95% interval]"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
        table.add_column("n", justify="right")
    if not by_bucket:
        table.add_column(REFERENCE_SHOWN, justify="right")
    for name, entry, published in _lines(document):
        if entry is None:
            table.add_section()
            continue
        cells = [entry[bucket] for bucket in BUCKETS] if by_bucket else [entry]
        shown = [text for cell in cells for text in (_shown(cell), str(cell["n"] or ""))]
        table.add_row(name, *shown, *([] if by_bucket else [published]))
    return table


def _lines(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield (name, entry, the published score), the entry None between the parts of the table.

    Categories and averages that have no score are left out.
    """
    complete = not document["incomplete"]  # the published scores are of all samples
    published: dict[str, Any] = reference()["models"][REFERENCE_SHOWN] if complete else {}
    tasks = published.get("tasks", {})
    for name, entry in document["tasks"].items():
        yield name, entry, str(tasks.get(name, ""))
    averages = dict(document["averages"])
    parts: list[list[tuple[str, Any, str]]] = []
    for variant, found in document["categories"].items():
        row = published.get(variant, {})
        part = [
            (f"{variant} {each}", entry, str(row.get(each, ""))) for each, entry in found.items()
        ]
        average = f"{variant} average", averages.pop(variant), str(row.get("average", ""))
        parts.append([*part, average])
    parts.append([(f"average of {name}", entry, "") for name, entry in averages.items()])
    for part in parts:
        if scored := [line for line in part if _has_score(line[1])]:
            yield "", None, ""
            yield from scored


def _has_score(entry: Mapping[str, Any]) -> bool:
    return any(each["score"] is not None for each in _entries(entry))


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["score"] is None:
        return "–"
    return f"{entry['score']:.2f} [{entry['low']:.1f}, {entry['high']:.1f}]"
