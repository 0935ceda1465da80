"""Results -> everything that the HTML page says, as text, numbers and laid-out plots.

The templates hold the markup; here is what stands in it. A part that was not measured is empty.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from skipalign import figures
from skipalign.ablation import ablations, drawn
from skipalign.boards import boards
from skipalign.comparison import CAPTIONS, LEADS, TITLES, block, span
from skipalign.coverage import density
from skipalign.downloads import csv_link
from skipalign.gate import gates
from skipalign.provenance import (
    ABSENT,
    accounts,
    cost,
    coverages,
    flatten,
    is_packed_as_one,
    is_trained,
    origin_of,
    probes,
    settings,
)
from skipalign.results import (
    DOCUMENTS,
    TOKENS_OF_TASK,
    Group,
    Run,
    group,
    rows_of_training,
    training_window,
)
from skipalign.scores import at_window, reference, sections

LONGEST_TITLE = 120  # characters of the runs' names
LONGEST_LIST = 400  # characters of the methods' names in the summary
TALL = 40  # rows of a table that scrolls below its head
# What is made by training alone: a base that is only extended has none of it.
OF_TRAINING = ("accounting", "probe", "coverage", "loss")


def page(runs: Sequence[Run], against: str | None = None) -> dict[str, Any]:
    """Return everything that the page says, as text, numbers and plots.

    Args:
        runs: what it is about.
        against: the method that differences are taken against; see `scores.reference`.
    """
    groups = group(runs)
    window = training_window(groups)
    tasks = _tasks(groups, window, reference(groups, against))
    found = _ablations(groups, window)
    blocks = [each for task in tasks for each in task["blocks"]]
    needles = next((task["blocks"] for task in tasks if task["name"] == "needle"), [])
    first: Mapping[str, Any] = next(iter(needles), {"rows": [], "paired": []})
    short, differences = (
        {row["method"]: row for row in at_window(first[kind], window)}
        for kind in ("rows", "paired")
    )
    shown_boards = boards(groups)
    names = [each.name for each in groups]
    starts = ["ablation"] if 2 * sum(each["num_methods"] for each in found) > len(groups) else []
    starts += [each["name"] for each in (*tasks, *shown_boards)]
    return {
        "names": names,
        "places": {name: place for place, name in enumerate(names)},
        "tall": TALL,
        "title": _title(runs),
        "summary": _summary(groups),
        "missing": _missing(groups),
        "notes": _notes(runs, blocks),
        "training_rows": rows_of_training(groups),
        "tasks": tasks,
        "boards": shown_boards,
        "gates": gates(runs),
        "first_section": (*starts, "repeat")[0],
        "has_trainings": has_trainings(groups),
        "ablations": found,
        "ablation_first": starts[:1] == ["ablation"],
        **_coverage(groups),
        **_losses(groups),
        "settings": settings(groups),
        **cost(groups, short, differences),
        "accounts": accounts(groups),
        **probes(groups),
        "environments": [
            {"name": str(run.folder), "rows": flatten(origin_of(run))} for run in runs
        ],
        "commands": _commands(runs),
        "recipes": [
            {"name": str(run.folder / "recipe.yaml"), "text": run.recipe}
            for run in runs
            if run.recipe is not None
        ],
        "sources": ", ".join(str(run.folder) for run in runs),
    }


def _tasks(
    groups: Sequence[Group], window: int | None, against: Group | None
) -> list[dict[str, Any]]:
    """Return the needle, and every other task that some training was measured in."""
    found = [
        {
            "name": task,
            "title": TITLES.get(task, task.capitalize()),
            "lead": LEADS.get(task, "Each figure is the score"),
            "caption": CAPTIONS.get(task, ""),
            "blocks": [block(each, groups, window, against) for each in sections(groups, task)],
        }
        for task in TOKENS_OF_TASK
    ]
    expected = "needle" if has_trainings(groups) else None
    return [task for task in found if task["blocks"] or task["name"] == expected]


def has_trainings(groups: Sequence[Group]) -> bool:
    """Whether more than results is known, or nothing at all yet."""
    seeds = any(each.seeds for each in groups)
    return (
        not groups
        or seeds
        or any(
            _has(each, part) for each in groups for part in ("training", "seconds", *OF_TRAINING)
        )
    )


def _ablations(groups: Sequence[Group], window: int | None) -> list[dict[str, Any]]:
    """Return each ablation, as far as its methods were examined alike."""
    found: list[dict[str, Any]] = []
    for each in ablations(groups):
        members = [one for one in groups if one.name in each.methods]
        found += [drawn(each, section, window) for section in sections(members, "needle")]
    return [each for each in found if each["lengths"]]


def _title(runs: Sequence[Run]) -> str:
    names = [run.folder.resolve().name for run in runs]
    title = ", ".join(names)
    return title if len(title) <= LONGEST_TITLE else f"{len(names)} runs, {names[0]} to {names[-1]}"


def _summary(groups: Sequence[Group]) -> str:
    if not groups:
        return "Nothing has been trained or measured here yet."
    if not has_trainings(groups):
        names = ", ".join(each.name for each in groups)
        return f"Results of {names}; how the models were trained is not known."
    if len(groups) == 1 and len(groups[0].trainings) == 1:
        seed = groups[0].trainings[0].seed
        return f"One training: {groups[0].name}" + ("." if seed is None else f", seed {seed}.")
    listed = ", ".join(each.name for each in groups)
    names = f": {listed}" if len(listed) <= LONGEST_LIST else ""
    seeds = span([len(each.trainings) for each in groups])
    methods = "method" if len(groups) == 1 else "methods"
    noun = "training seed" if seeds == "1" else "training seeds"
    return f"{len(groups)} {methods} with {seeds} {noun} each{names}."


def _notes(runs: Sequence[Run], blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [message for run in runs for message in run.unread.values()]
    for training in (training for run in runs for training in run.trainings):
        notes.extend(training.unread.values())
        if training.documents.get("training", {}).get("interrupted"):
            notes.append(f"{training.folder}: the training was interrupted before its end")
    return [*notes, *(f"left out: {text}" for block in blocks for text in block["incomplete"])]


def _missing(groups: Sequence[Group]) -> dict[str, str]:
    """Return, for every part, the methods of which no training has it."""
    found: dict[str, str] = {}
    for part in (*DOCUMENTS, "loss"):
        expected = [each for each in groups if part not in OF_TRAINING or is_trained(each)]
        found[part] = ", ".join(each.name for each in expected if not _has(each, part))
    return found


def _has(each: Group, part: str) -> bool:
    if part == "loss":
        return any(training.loss for training in each.trainings)
    return bool(each.documents(part))


def _commands(runs: Sequence[Run]) -> list[str]:
    commands = [
        f"skipalign run {shlex.quote(str(run.folder / 'recipe.yaml'))}"
        for run in runs
        if run.recipe is not None
    ]
    folders = " ".join(shlex.quote(str(run.folder)) for run in runs)
    return [*commands, f"skipalign report {folders}"]


# ------------------------------------------------------------------------------ coverage and loss


def _coverage(groups: Sequence[Group]) -> dict[str, Any]:
    measured = {each.name: each.documents("coverage") for each in groups}
    histograms = {name: _summed(found) for name, found in measured.items() if found}
    axes = _coverage_axes(list(histograms.values()))
    panels: list[dict[str, Any]] = []
    table_rows: list[list[str]] = []
    for row in coverages(groups):
        name = row["method"]
        if name not in histograms:
            table_rows.append([name, *[ABSENT] * 6])
            continue
        covered, uniform = f"{row['covered_fraction']:.1%}", f"{row['uniform_distance']:.2f}"
        run = f"{row['mean_run']:,.1f}"
        note = f"covers {covered}, {uniform} from uniform, mean run {run} tokens"
        plot = _histogram(name, note, histograms[name], axes)
        panels.append({"name": name, "note": note, "plot": plot})
        samples = f"{row['num_samples']:,} of {row['num_examples']:,}"
        named = [name, row["strategy"], f"{row['max_position']:,}", samples]
        table_rows.append([*named, covered, uniform, run])
    head = ["method", "strategy", "range", "samples", "covered", "from uniform", "mean run"]
    packed = ", ".join(each.name for each in groups if is_packed_as_one(each))
    shown = {"coverage": panels, "coverage_head": head, "coverage_packed": packed}
    return {**shown, "coverage_rows": table_rows if panels else []}


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
        csv_text=csv_link(data),
    )


def _losses(groups: Sequence[Group]) -> dict[str, Any]:
    having = [each for each in groups if any(training.loss for training in each.trainings)]
    curves = [training.loss for each in having for training in each.trainings if training.loss]
    return {
        "losses_folded": len(having) > figures.MANY,
        "losses_thinned": any(len(curve) > figures.MAX_POINTS for curve in curves),
        "losses": [
            {"name": each.name, "plot": _loss_plot(each, curves, groups.index(each))}
            for each in having
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
        csv_text=csv_link(data),
    )
