"""Results -> one task's part of the page: all methods side by side in tables, curves and maps."""

from collections.abc import Mapping, Sequence
from typing import Any

from skipalign import figures
from skipalign.downloads import csv_link
from skipalign.evaluation.tasks import TASKS
from skipalign.provenance import MARKS, flatten, signed
from skipalign.results import TOKENS_OF_TASK, Group
from skipalign.scores import Section, grid, paired, rows, side
from skipalign.shades import shade

# Columns of a heat map that stands beside others, and beside one other.
THREE_ABREAST, TWO_ABREAST = 8, 16
# More maps than these are drawn small, those that the paper shows before the others.
FEW_MAPS = 4
# The paper's figures by the names of our recipes; the fourth is the method skipalign, or the first
# one of that strategy.
PAPER = ("base-ntk", "normal", "packed")
SKIPALIGN = "skipalign"

TITLES = {
    "needle": "Needle accuracy by context length",
    "stretch": "Stretch probe",
    "perplexity": "Natural text by context length",
    "babilong": "BABILong",
    "nolima": "NoLiMa",
    "ruler": "RULER",
}
LEADS = {
    "needle": "A random value is hidden at several depths of a text that is really long, and the "
    "model is asked for it. Each figure is the share of right answers",
    "stretch": "The question of a short text is moved away from it, to a position so many tokens "
    "later, with nothing in between. Few tokens compete for attention, so the stretch probe shows "
    "position failure alone; the needle shows it together with what more text does. A method that "
    "holds here and fails there has learnt the positions and is misled by the text. Each figure is "
    "the share of right answers",
    "perplexity": "How well the model expects held-out prose at the end of a text of that length. "
    "Each figure is the loss in nats per token, lower is better; its exponential is the "
    "perplexity. It is the mean over documents",
    "babilong": "A question about facts that are hidden in books; the lengths are the mean tokens "
    "of a published size. Each figure is the share of right answers, all subtasks together",
    "nolima": "A question whose words are not those of the fact that answers it. Each figure is "
    "the share of right answers",
    "ruler": "Synthetic tasks of retrieval, tracing and counting. Each figure is the share of the "
    "strings asked for, all subtasks together",
}
CAPTIONS = {
    "needle": "long text: far positions and many rivals together",
    "stretch": "short text, far positions: position failure alone",
    "perplexity": "lower is better",
}
MEASURES = {"accuracy": "accuracy", "score": "score", "nats": "loss (nats per token)"}
PLACES = {"accuracy": 2, "score": 2, "nats": 3}


def block(
    section: Section, groups: Sequence[Group], window: int | None, against: Group | None
) -> dict[str, Any]:
    """Return what the page says of the groups that were examined in one task in one way.

    Args:
        section: those groups.
        groups: all groups of the page; they decide the colours.
        window: the longest training row in tokens.
        against: what differences are taken against.
    """
    found = rows(section)
    key = TOKENS_OF_TASK[section.task]
    series = _series(found, [each.name for each in groups], key)
    columns = _columns(section, sorted({row[key] for row in found}), window)
    made: dict[str, Any] = {
        "digest": section.digest,
        "settings": "; ".join(f"{name} {value}" for name, value in flatten(section.settings)),
        "settings_rows": flatten(section.settings),
        "incomplete": section.incomplete,
        "nested": bool(section.settings.get("nested")),
        "table": _score_table(section.task, found, columns),
        "rows": found,
        "csv": csv_link(found),
        **_plots(section.task, found, series, window, against),
        **_differences(section, columns, against),
    }
    if section.task == "needle":
        made |= maps(section, list(columns), window)
    return made


def span(values: Sequence[int]) -> str:
    """Return what numbers have in common: `24`, or `8–24`."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def multiple(tokens: int, window: int | None) -> str:
    """Return a length as a multiple of the training window, such as `8×`."""
    if not window:
        return ""
    share = tokens / window
    return f"{share:,.0f}×" if share >= 10 else f"{share:.2g}×"


# -------------------------------------------------------------------------------------- tables


def _columns(
    section: Section, lengths: Sequence[int], window: int | None
) -> dict[int, dict[str, Any]]:
    """Return the heads of a score table; the stretch probe's natural positions are named."""
    natural = {
        cell["distance"]
        for each in section.groups
        for document in each.documents(section.task)
        for cell in document["cells"]
        if cell.get("shifted") is False
    }
    return {
        tokens: {
            "text": f"{tokens:,}",
            "multiple": "natural" if tokens in natural else multiple(tokens, window),
            "trained": bool(window and tokens <= window),
        }
        for tokens in lengths
    }


def _score_table(
    task: str, found: Sequence[Mapping[str, Any]], columns: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    places = PLACES[TASKS[task].measure]

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        interval = f"[{row['low']:.{places}f}, {row['high']:.{places}f}]"
        text = f"{row['mean']:.{places}f}"
        return {
            "value": row["mean"],
            "text": text,
            "mark": "",
            "verdict": "",
            "interval": interval,
        }

    what = f"{TITLES.get(task, task)}: means"
    return _table(what, found, columns, {"key": TOKENS_OF_TASK[task], "shown": shown})


def _table(
    title: str,
    found: Sequence[Mapping[str, Any]],
    columns: Mapping[int, Mapping[str, Any]],
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """Lay out a row for each method, a column for each number of tokens."""
    methods: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in found:
        methods.setdefault(row["method"], {})[row[how["key"]]] = row
    return {
        "title": title,
        "columns": list(columns.values()),
        "rows": [
            {
                "name": name,
                "cells": [
                    how["shown"](cells[tokens]) if tokens in cells else None for tokens in columns
                ],
                "seeds": span([row["num_seeds"] for row in cells.values()]),
                "trials": span([row["num_trials"] for row in cells.values()]),
            }
            for name, cells in methods.items()
        ],
    }


def _differences(
    section: Section, columns: Mapping[int, Mapping[str, Any]], against: Group | None
) -> dict[str, Any]:
    """Lay out the paired differences; a mark says where the interval leaves 0 out."""
    found = paired(section, against)
    measure = TASKS[section.task].measure
    places = PLACES[measure]

    def shown(row: Mapping[str, Any]) -> dict[str, Any]:
        better = -side(row) if measure == "nats" else side(row)
        return {
            "value": row["difference"],
            "text": signed(row["difference"], places),
            "mark": MARKS[side(row)],
            "verdict": {1: "better", -1: "worse", 0: ""}[better],
            "interval": f"[{signed(row['low'], places)}, {signed(row['high'], places)}]",
        }

    title = f"{TITLES.get(section.task, section.task)}: differences from "
    how = {"key": TOKENS_OF_TASK[section.task], "shown": shown}
    compared = {row["method"] for row in found}
    names = [each.name for each in section.groups if not against or each.name != against.name]
    return {
        "paired": found,
        "against": found[0]["against"] if found else None,
        "differences": _table(title + found[0]["against"], found, columns, how) if found else None,
        "num_differences": len(found),
        "num_by_chance": max(1, round(len(found) / 20)),
        "differences_csv": csv_link(found),
        "unpaired": ", ".join(name for name in names if name not in compared) if found else "",
    }


# --------------------------------------------------------------------------------------- plots


def _series(
    found: Sequence[Mapping[str, Any]], names: Sequence[str], key: str
) -> list[figures.Series]:
    points: dict[str, list[tuple[float, ...]]] = {}
    for row in found:
        point = (float(row[key]), row["mean"], row["low"], row["high"])
        points.setdefault(row["method"], []).append(point)
    return [figures.Series(name, tuple(each), names.index(name)) for name, each in points.items()]


def _plots(
    task: str,
    found: Sequence[Mapping[str, Any]],
    series: Sequence[figures.Series],
    window: int | None,
    against: Group | None,
) -> dict[str, Any]:
    """Draw all methods on one plot and, where they are many, each on a small one of its own."""
    key, measure = TOKENS_OF_TASK[task], TASKS[task].measure
    label = f"{key.replace('_', ' ')} (tokens)"
    values = [float(row[key]) for row in found]
    marks = [(float(window), "training window")] if window and values else []
    marks = [mark for mark in marks if min(values) <= mark[0] <= max(values)]
    axes = (figures.tokens_axis(label, values), _upright(measure, found))
    title = f"{MEASURES[measure].capitalize()} by {label}"
    names = ", ".join(each.name for each in series)
    description = f"One line for each method: {names}; the table holds the same figures."
    beside = [
        figures.Series(each.name, tuple(point[:2] for point in each.points), 0)
        for each in series
        if against and each.name == against.name
    ]
    many = len(series) > figures.MANY
    panels = [
        {"name": each.name, "plot": _panel(each, beside, title=title, axes=axes, marks=marks)}
        for each in (series if many else ())
    ]
    return {
        "caption": CAPTIONS.get(task, ""),
        "plot": figures.curves(title, description, axes, series, marks=marks),
        "panels": panels,
        "ghosts": figures.ghosts(axes, series) if many else "",
        "dashed": beside[0].name if beside else None,
    }


def _upright(measure: str, found: Sequence[Mapping[str, Any]]) -> figures.Axis:
    if measure != "nats":
        return figures.unit_axis(MEASURES[measure])
    lowest = min((row["low"] for row in found), default=0.0)
    highest = max((row["high"] for row in found), default=1.0)
    return figures.linear_axis(MEASURES[measure], float(int(lowest)), highest)


def _panel(
    each: figures.Series,
    beside: Sequence[figures.Series],
    *,
    title: str,
    axes: tuple[figures.Axis, figures.Axis],
    marks: Sequence[tuple[float, str]],
) -> figures.Plot:
    own = figures.Series(each.name, each.points, 1)
    others = [other for other in beside if other.name != each.name]
    return figures.panel(f"{each.name}: {title}", axes, [*others, own], marks=marks)


# ---------------------------------------------------------------------------------------- maps


def maps(section: Section, columns: Sequence[int], window: int | None) -> dict[str, Any]:
    """Draw accuracy by context length and depth, one map a method, those of the paper first."""
    scores = {each.name: grid(section, each) for each in section.groups}
    dense = len(columns) > THREE_ABREAST
    small = len(scores) > FEW_MAPS and not dense
    cells = [
        {"method": name, "context_length": tokens, "depth": depth, **score}
        for name, found in scores.items()
        for (tokens, depth), score in found.items()
    ]
    heads = [
        {
            "text": figures.short_tokens(tokens) if dense or small else f"{tokens:,}",
            "full": f"{tokens:,} tokens",
        }
        for tokens in columns
    ]
    past = _first_past(columns, window)
    drawn = {
        name: _map(name, found, columns, past=past, small=small) | {"columns": heads}
        for name, found in scores.items()
    }
    every = [score for found in scores.values() for score in found.values()]
    note = _map_note(every)
    first = _of_the_paper(section.groups)
    shown_first = [drawn[name] for name in first] if small else []
    rest = [each for name, each in drawn.items() if not shown_first or name not in first]
    return {
        "dense": dense,
        "small_maps": small,
        "map_note": note if small else "",
        "widest": len(columns) > TWO_ABREAST,
        "maps_csv": csv_link(cells),
        "paper_maps": shown_first,
        "maps": rest,
    }


def _of_the_paper(groups: Sequence[Group]) -> list[str]:
    """Return the names of the paper's four figures in its order; () where one is not here."""
    by_method = {each.trainings[0].method: each.name for each in reversed(groups)}
    found = [by_method.get(method) for method in PAPER]
    skipping = (each.name for each in groups if SKIPALIGN in _strategies(each))
    names = [*found, by_method.get(SKIPALIGN) or next(skipping, None)]
    return [name for name in names if name] if all(names) else []


def _strategies(each: Group) -> set[str]:
    documents = each.documents("training")
    return {
        strategy["name"]
        for document in documents
        for strategy in (document.get("strategies") or {}).values()
        if isinstance(strategy, Mapping) and "name" in strategy
    }


def _map(
    name: str,
    found: Mapping[tuple[int, float], Mapping[str, Any]],
    columns: Sequence[int],
    *,
    past: int | None,
    small: bool,
) -> dict[str, Any]:
    return {
        "name": name,
        "title": f"{name}: accuracy by context length in tokens and depth",
        "note": "" if small else _map_note(list(found.values())),
        "x_label": "" if small else "context length (tokens)",
        "y_label": "" if small else "depth",
        "rows": [
            {
                "head": _percent(depth),
                "cells": [
                    map_cell(
                        f"{name}, {tokens:,} tokens, depth {_percent(depth)}",
                        found.get((tokens, depth)),
                        past=tokens == past,
                        small=small,
                    )
                    for tokens in columns
                ],
            }
            for depth in sorted({depth for _, depth in found})
        ],
    }


def map_cell(
    where: str, score: Mapping[str, Any] | None, *, past: bool = False, small: bool = False
) -> dict[str, Any]:
    """Return a cell of a heat map; `past` draws a rule before it, `small` drops the 0 of 0.97."""
    if score is None:
        return {"text": "", "past": past, "label": f"{where}: not measured"}
    interval = f"{score['low']:.2f} to {score['high']:.2f}"
    text = f"{score['mean']:.2f}"
    return {
        "text": (text.removeprefix("0") if text != "1.00" else "1") if small else text,
        "shade": shade(score["mean"]),
        "past": past,
        "label": f"{where}: {score['mean']:.2f}, interval {interval}, "
        f"{score['num_trials']:,} trials",
    }


def _map_note(cells: Sequence[Mapping[str, Any]]) -> str:
    if not cells:
        return ""
    seeds = span([cell["num_seeds"] for cell in cells])
    trials = span([cell["num_trials"] for cell in cells])
    return f"{'one seed' if seeds == '1' else f'mean over {seeds} seeds'}, {trials} trials a cell"


def _first_past(columns: Sequence[int], window: int | None) -> int | None:
    """Return the first length beyond the training window, where one lies within it."""
    past = [tokens for tokens in columns if window and tokens > window]
    return past[0] if past and past[0] != columns[0] else None


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"
