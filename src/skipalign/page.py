"""Results -> everything that the HTML page says, as text, numbers and laid-out plots.

The templates hold the markup; here is what stands in it. A part that was not measured is empty.
"""

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from skipalign import figures
from skipalign.coverage import density
from skipalign.provenance import accounts, cost, flatten, probes, settings
from skipalign.results import (
    DOCUMENTS,
    TOKENS_OF_TASK,
    Group,
    Run,
    Section,
    grid,
    group,
    rows,
    sections,
    training_window,
)

# Columns of a heat map that stands beside two others, and beside one other.
THREE_ABREAST, TWO_ABREAST = 8, 16


def page(runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything that the page says, as text, numbers and plots."""
    groups = group(runs)
    window = training_window(groups)
    needle = [_task_block(section, groups, window) for section in sections(groups, "needle")]
    stretch = [_task_block(section, groups, window) for section in sections(groups, "stretch")]
    return {
        "title": ", ".join(run.folder.resolve().name for run in runs),
        "summary": _summary(groups),
        "missing": _missing(groups),
        "notes": _notes(runs, [*needle, *stretch]),
        "window": f"{window:,}" if window else None,
        "needle": needle,
        "stretch": stretch,
        **_coverage(groups),
        **_losses(groups),
        "settings": settings(groups),
        **cost(groups),
        "accounts": accounts(groups),
        **probes(groups),
        "environments": [
            {"name": str(run.folder), "rows": flatten(run.environment or {})} for run in runs
        ],
        "commands": _commands(runs),
        "recipes": [
            {"name": str(run.folder / "recipe.yaml"), "text": run.recipe}
            for run in runs
            if run.recipe is not None
        ],
        "sources": ", ".join(str(run.folder) for run in runs),
    }


def _summary(groups: Sequence[Group]) -> str:
    if not groups:
        return "Nothing has been trained or measured here yet."
    if len(groups) == 1 and len(groups[0].trainings) == 1:
        seed = groups[0].trainings[0].seed
        return f"One training: {groups[0].name}" + ("." if seed is None else f", seed {seed}.")
    names = ", ".join(each.name for each in groups)
    seeds = span([len(each.trainings) for each in groups])
    methods = "method" if len(groups) == 1 else "methods"
    noun = "training seed" if seeds == "1" else "training seeds"
    return f"{len(groups)} {methods} with {seeds} {noun} each: {names}."


def _notes(runs: Sequence[Run], blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [message for run in runs for message in run.unread.values()]
    for training in (training for run in runs for training in run.trainings):
        notes.extend(training.unread.values())
        if training.documents.get("training", {}).get("interrupted"):
            notes.append(f"{training.folder}: the training was interrupted before its end")
    return [*notes, *(f"left out: {text}" for block in blocks for text in block["incomplete"])]


def _missing(groups: Sequence[Group]) -> dict[str, str]:
    """Return, for every part, the methods of which no training has it."""
    found = {
        part: ", ".join(each.name for each in groups if not each.documents(part))
        for part in DOCUMENTS
    }
    found["loss"] = ", ".join(
        each.name for each in groups if not any(training.loss for training in each.trainings)
    )
    return found


def _commands(runs: Sequence[Run]) -> list[str]:
    commands = [
        f"skipalign run {shlex.quote(str(run.folder / 'recipe.yaml'))}"
        for run in runs
        if run.recipe is not None
    ]
    folders = " ".join(shlex.quote(str(run.folder)) for run in runs)
    return [*commands, f"skipalign report {folders}"]


# -------------------------------------------------------------------- needle and stretch probe


def _task_block(section: Section, groups: Sequence[Group], window: int | None) -> dict[str, Any]:
    found = rows(section)
    key = TOKENS_OF_TASK[section.task]
    names = [each.name for each in groups]
    columns = sorted({row[key] for row in found})
    block: dict[str, Any] = {
        "digest": section.digest,
        "settings": "; ".join(f"{name} {value}" for name, value in flatten(section.settings)),
        "settings_rows": flatten(section.settings),
        "incomplete": section.incomplete,
        "table": _score_table(found, key, _columns(section, columns, window)),
        "plot": _score_plot(found, key, names, window),
        "csv": figures.csv_link(found),
    }
    if section.task == "needle":
        block |= _maps(section, columns, window)
    return block


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
    found: Sequence[Mapping[str, Any]], key: str, columns: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    methods: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in found:
        methods.setdefault(row["method"], {})[row[key]] = row
    return {
        "title": f"Accuracy by {key.replace('_', ' ')} in tokens",
        "columns": list(columns.values()),
        "rows": [
            {
                "name": name,
                "cells": [_score_cell(cells.get(tokens)) for tokens in columns],
                "seeds": span([row["num_seeds"] for row in cells.values()]),
                "trials": span([row["num_trials"] for row in cells.values()]),
            }
            for name, cells in methods.items()
        ],
    }


def _score_cell(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"mean": row["mean"], "interval": f"[{row['low']:.2f}, {row['high']:.2f}]"}


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


def _score_plot(
    found: Sequence[Mapping[str, Any]], key: str, names: Sequence[str], window: int | None
) -> figures.Plot:
    points: dict[str, list[tuple[float, ...]]] = {}
    for row in found:
        point = (float(row[key]), row["mean"], row["low"], row["high"])
        points.setdefault(row["method"], []).append(point)
    label = "context length (tokens)" if key == "context_length" else "distance (tokens)"
    values = [float(row[key]) for row in found]
    marks = [(float(window), "training window")] if window and values else []
    marks = [mark for mark in marks if min(values) <= mark[0] <= max(values)]
    return figures.curves(
        f"Accuracy by {label}",
        f"One line for each method: {', '.join(points)}; the table holds the same figures.",
        (figures.tokens_axis(label, values), figures.unit_axis("accuracy")),
        [figures.Series(name, tuple(each), names.index(name)) for name, each in points.items()],
        marks=marks,
    )


def _maps(section: Section, columns: Sequence[int], window: int | None) -> dict[str, Any]:
    scores = {each.name: grid(section, each) for each in section.groups}
    dense = len(columns) > THREE_ABREAST
    cells = [
        {"method": name, "context_length": tokens, "depth": depth, **score}
        for name, found in scores.items()
        for (tokens, depth), score in found.items()
    ]
    heads = [
        {"text": _short_tokens(tokens) if dense else f"{tokens:,}", "full": f"{tokens:,} tokens"}
        for tokens in columns
    ]
    depths = sorted({depth for found in scores.values() for _, depth in found})
    past = _first_past(columns, window)
    return {
        "dense": dense,
        "widest": len(columns) > TWO_ABREAST,
        "maps_csv": figures.csv_link(cells),
        "maps": [
            {
                "name": name,
                "title": f"{name}: accuracy by context length in tokens and depth",
                "note": _map_note(list(found.values())),
                "columns": heads,
                "y_label": "depth",
                "rows": [
                    {
                        "depth": _percent(depth),
                        "cells": [
                            _map_cell(name, (tokens, depth), found, past=tokens == past)
                            for tokens in columns
                        ],
                    }
                    for depth in depths
                ],
            }
            for name, found in scores.items()
        ],
    }


def _map_cell(
    name: str,
    place: tuple[int, float],
    found: Mapping[tuple[int, float], Mapping[str, Any]],
    *,
    past: bool,
) -> dict[str, Any]:
    where = f"{name}, {place[0]:,} tokens, depth {_percent(place[1])}"
    score = found.get(place)
    if score is None:
        return {"text": "", "past": past, "label": f"{where}: not measured"}
    interval = f"{score['low']:.2f} to {score['high']:.2f}"
    return {
        "text": f"{score['mean']:.2f}",
        "shade": figures.shade(score["mean"]),
        "past": past,
        "label": f"{where}: {score['mean']:.2f}, interval {interval}, "
        f"{score['num_trials']:,} trials",
    }


def _map_note(cells: Sequence[Mapping[str, Any]]) -> str:
    seeds = span([cell["num_seeds"] for cell in cells])
    trials = span([cell["num_trials"] for cell in cells])
    return f"{'one seed' if seeds == '1' else f'mean over {seeds} seeds'}, {trials} trials a cell"


def _first_past(columns: Sequence[int], window: int | None) -> int | None:
    """Return the first length beyond the training window, where one lies within it."""
    past = [tokens for tokens in columns if window and tokens > window]
    return past[0] if past and past[0] != columns[0] else None


def _percent(share: float) -> str:
    return f"{share * 100:.3g}%"


def _short_tokens(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


# ------------------------------------------------------------------------------ coverage and loss


def _coverage(groups: Sequence[Group]) -> dict[str, Any]:
    measured = {each.name: each.documents("coverage") for each in groups}
    measured = {name: found for name, found in measured.items() if found}
    histograms = {name: _summed(found) for name, found in measured.items()}
    panels: list[dict[str, Any]] = []
    table_rows: list[list[str]] = []
    axes = _coverage_axes(list(histograms.values()))
    for name, found in measured.items():
        covered, uniform, run = (
            fmean(float(document[key]) for document in found)
            for key in ("covered_fraction", "uniform_distance", "mean_run")
        )
        note = f"covers {covered:.0%}, {uniform:.2f} from uniform, mean run {run:,.1f} tokens"
        plot = _histogram(name, note, histograms[name], axes)
        panels.append({"name": name, "note": note, "plot": plot})
        first = found[0]
        figures_of_row = [f"{covered:.1%}", f"{uniform:.2f}", f"{run:,.1f}"]
        samples = f"{first['num_samples']:,} of {first['num_examples']:,}"
        named = [name, first["strategy"], f"{first['max_position']:,}", samples]
        table_rows.append([*named, *figures_of_row])
    head = ["method", "strategy", "range", "samples", "covered", "from uniform", "mean run"]
    return {"coverage": panels, "coverage_head": head, "coverage_rows": table_rows}


def _summed(found: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Add up the histograms of the seeds that have the first one's bins."""
    edges = found[0]["histogram"]["edges"]
    counts = [
        document["histogram"]["counts"]
        for document in found
        if document["histogram"]["edges"] == edges
    ]
    return {"edges": edges, "counts": [sum(column) for column in zip(*counts, strict=True)]}


def _coverage_axes(
    histograms: Sequence[Mapping[str, Sequence[int]]],
) -> tuple[figures.Axis, figures.Axis]:
    """Return axes that hold all histograms, down to a hundredth of uniform."""
    highest = max((float(density(each).max()) for each in histograms), default=1.0)
    reach = max((each["edges"][-1] for each in histograms), default=1)
    return (
        figures.reach_axis("relative distance (tokens)", reach),
        figures.decades_axis("times uniform", 0.01, max(highest, 1.0)),
    )


def _histogram(
    name: str,
    note: str,
    histogram: Mapping[str, Sequence[int]],
    axes: tuple[figures.Axis, figures.Axis],
) -> figures.Plot:
    edges, counts = histogram["edges"], histogram["counts"]
    data = [
        {"from": low, "below": high, "pairs": count}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return figures.histogram(
        f"{name}: relative distances of trained tokens",
        note,
        axes,
        [float(edge) for edge in edges],
        [float(height) for height in density(histogram)],
        rule=1.0,
        csv_text=figures.csv_link(data),
    )


def _losses(groups: Sequence[Group]) -> dict[str, Any]:
    drawn = [each for each in groups if any(training.loss for training in each.trainings)]
    curves = [training.loss for each in drawn for training in each.trainings if training.loss]
    return {
        "losses_thinned": any(len(curve) > figures.MAX_POINTS for curve in curves),
        "losses": [
            {"name": each.name, "plot": _loss_plot(each, curves, groups.index(each))}
            for each in drawn
        ],
    }


def _loss_plot(
    each: Group, curves: Sequence[Sequence[tuple[int, float]]], style: int
) -> figures.Plot:
    """Draw the seeds of a method on axes that hold the curves of all methods."""
    thin = {
        training.label: figures.thinned(training.loss)
        for training in each.trainings
        if training.loss
    }
    highest = max(loss for curve in curves for _, loss in figures.thinned(curve))
    axes = (
        figures.linear_axis("step", 0.0, float(max(curve[-1][0] for curve in curves))),
        figures.linear_axis("loss (nats per trained token)", 0.0, highest),
    )
    data = [
        {"seed": name, "step": step, "loss": loss}
        for name, points in thin.items()
        for step, loss in points
    ]
    return figures.curves(
        f"{each.name}: training loss by step",
        f"One line for each of {len(thin)} seeds.",
        axes,
        [figures.Series(name, tuple(points), style) for name, points in thin.items()],
        size=(360, 220),
        csv_text=figures.csv_link(data),
    )
