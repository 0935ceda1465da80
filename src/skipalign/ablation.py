"""Results -> the ablation: methods that differ in two numbers of their strategy, drawn.

Found in the settings that each training kept, never by a method's name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from skipalign import figures
from skipalign.comparison import map_cell, multiple
from skipalign.downloads import csv_link
from skipalign.provenance import OUTCOMES
from skipalign.results import Cell, Group, pooled
from skipalign.scores import Section, score, whole

# A sample that never skips has no range to skip in: one training stands for every max_position.
SHARE, RANGE = "skip_fraction", "max_position"
FEWEST = 4  # methods that make a table of two numbers

Number = int | float


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """Methods that are equal but for two numbers: which they are, and the method of each pair.

    `cells` holds every pair that was trained; one without skips stands at every `max_position`.
    """

    fields: tuple[str, str]
    cells: Mapping[tuple[Number, Number], Group]

    def values(self, place: int) -> list[Number]:
        """Return the values of the first (0) or second (1) number, ascending."""
        return sorted({pair[place] for pair in self.cells})

    @property
    def methods(self) -> list[str]:
        """The names of the methods."""
        return list(dict.fromkeys(each.name for each in self.cells.values()))


def ablations(groups: Sequence[Group]) -> list[Ablation]:
    """Return the sets of methods that differ in exactly two numbers of their strategy."""
    alike: dict[str, list[tuple[Group, dict[str, Number]]]] = {}
    for each in groups:
        if (found := _strategy_numbers(each)) is not None:
            rest, numbers = found
            alike.setdefault(rest, []).append((each, numbers))
    made = (_ablation(members) for members in alike.values() if len(members) >= FEWEST)
    return [each for each in made if each is not None]


def _strategy_numbers(each: Group) -> tuple[str, dict[str, Number]] | None:
    """Return what must be equal as text, and the numbers of the one strategy; None without one."""
    document = next(iter(each.documents("training")), None)
    if document is None or not document.get("train", True):
        return None
    strategies = list((document.get("strategies") or {}).values())
    if not strategies or any(strategy != strategies[0] for strategy in strategies[1:]):
        return None
    numbers = {key: value for key, value in strategies[0].items() if _is_number(value)}
    words = {key: value for key, value in strategies[0].items() if key not in numbers}
    # Studies take another base for each seed; it is the same for all methods of a seed.
    settings = {
        key: value
        for key, value in document.items()
        if key not in (*OUTCOMES, "strategies") and not key.startswith("base")
    }
    return json.dumps([words, sorted(numbers), settings], sort_keys=True, default=str), numbers


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ablation(members: Sequence[tuple[Group, dict[str, Number]]]) -> Ablation | None:
    numbers = [found for _, found in members]
    varied = [key for key in numbers[0] if len({found[key] for found in numbers}) > 1]
    if len(varied) != 2:
        return None
    first, second = sorted(varied, key=lambda name: (name == RANGE, name))
    cells: dict[tuple[Number, Number], Group] = {}
    everywhere: list[tuple[Number, Group]] = []
    for each, found in members:
        if (first, second, found[first]) == (SHARE, RANGE, 0):
            everywhere.append((found[first], each))
        else:
            cells[found[first], found[second]] = each
    columns = {pair[1] for pair in cells}
    cells |= {(value, column): each for value, each in everywhere for column in columns}
    return Ablation((first, second), cells) if len(cells) >= FEWEST else None


# ------------------------------------------------------------------------------------- drawings


def drawn(found: Ablation, section: Section, window: int | None) -> dict[str, Any]:
    """Return what the page shows of an ablation: at each length two plots and a map."""
    members = {each.name: each for each in section.groups}
    cells = {pair: members[each.name] for pair, each in found.cells.items() if each.name in members}
    measured = {tokens: _by_pair(cells, section, tokens) for tokens in section.asked}
    lengths = [_length(found, pairs, tokens, window) for tokens, pairs in measured.items() if pairs]
    data = [row for length in lengths for row in length.pop("data")]
    return {
        "fields": found.fields,
        "num_methods": len(found.methods),
        "shared": found.fields == (SHARE, RANGE) and 0 in found.values(0),
        "lengths": lengths,
        "csv": csv_link(data),
    }


# The cell of each seed by the pair of numbers.
ByPair = dict[tuple[Number, Number], dict[int | None, Cell]]


def _by_pair(cells: Mapping[tuple[Number, Number], Group], section: Section, tokens: int) -> ByPair:
    measured: ByPair = {}
    for pair, each in cells.items():
        seeds = {one.seed: whole(section, [one], tokens) for one in each.trainings}
        if found := {seed: cell[0] for seed, cell in seeds.items() if cell}:
            measured[pair] = found
    return measured


def _length(found: Ablation, cells: ByPair, tokens: int, window: int | None) -> dict[str, Any]:
    first, second = found.fields
    scores = {pair: score(list(seeds.values())) for pair, seeds in cells.items()}
    times = multiple(tokens, window)
    where = f"{tokens:,} tokens" + (f" ({times})" if times else "")
    return {
        "where": where,
        "tokens": tokens,
        "beyond": bool(window and tokens > window),
        "plots": [_plot(found, cells, scores, place, where) for place in (0, 1)],
        "map": _map(found, scores, where),
        "data": [
            {first: pair[0], second: pair[1], "context_length": tokens, **scores[pair]}
            for pair in sorted(scores)
        ],
    }


def _plot(
    found: Ablation,
    cells: ByPair,
    scores: Mapping[tuple[Number, Number], Mapping[str, Any]],
    place: int,
    where: str,
) -> figures.Plot:
    """Draw accuracy against one number: a line for each value of the other, and their mean."""
    along, other = found.values(place), found.values(1 - place)
    series = [figures.Series("mean", tuple(_mean_line(found, cells, place)), 0)]
    for style, value in enumerate(other, start=1):
        pairs = [(x, (x, value) if place == 0 else (value, x)) for x in along]
        points = [(float(x), scores[pair]["mean"]) for x, pair in pairs if pair in scores]
        series.append(figures.Series(figures.number(value), tuple(points), style))
    axes = (figures.values_axis(_named(found.fields[place]), along), figures.unit_axis("accuracy"))
    return figures.curves(
        f"Accuracy at {where} by {found.fields[place]}",
        f"One line for each {found.fields[1 - place]}, and their mean with its 95% interval.",
        axes,
        series,
        size=(380, 250),
    )


def _mean_line(found: Ablation, cells: ByPair, place: int) -> list[tuple[float, ...]]:
    """Return the mean over the other number with its interval, where all of it was measured.

    The trials of all methods at one value count together, seed by seed, for the seeds that all
    have. A set of trainings that stands at many places counts only where it stands alone.
    """
    points: list[tuple[float, ...]] = []
    for x in found.values(place):
        pairs = [(x, value) if place == 0 else (value, x) for value in found.values(1 - place)]
        own = [pair for pair in pairs if not _stands_everywhere(found, pair)] or pairs[:1]
        measured = [cells[pair] for pair in own if pair in cells]
        common = [seed for seed in chain(*measured[:1]) if all(seed in each for each in measured)]
        if common and len(measured) == len(own):
            row = score([pooled([each[seed] for each in measured]) for seed in common])
            points.append((float(x), row["mean"], row["low"], row["high"]))
    return points


def _stands_everywhere(found: Ablation, pair: tuple[Number, Number]) -> bool:
    return found.fields == (SHARE, RANGE) and pair[0] == 0


def _map(
    found: Ablation, scores: Mapping[tuple[Number, Number], Mapping[str, Any]], where: str
) -> dict[str, Any]:
    first, second = found.fields
    columns = found.values(1)
    return {
        "name": "Both",
        "title": f"Accuracy at {where} by {first} and {second}",
        "note": "",
        "x_label": _named(second),
        "y_label": _named(first),
        "columns": [
            {"text": figures.number(value), "full": f"{second} {figures.number(value)}"}
            for value in columns
        ],
        "rows": [
            {
                "head": figures.number(value),
                "cells": [
                    map_cell(
                        f"{first} {figures.number(value)}, {second} {figures.number(column)}",
                        scores.get((value, column)),
                    )
                    for column in columns
                ],
            }
            for value in found.values(0)
        ],
    }


def _named(field: str) -> str:
    return f"{field} (tokens)" if field == RANGE else field
