"""Results -> the gate: whether a method kept the short ability of one trained without skips.

A recipe states it: `gate: {against: normal, perplexity: 0.01, short_check: 0.02}`. Every trained
method is judged by its mean difference from `against`; the interval says how sure that is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from skipalign.errors import RecipeError
from skipalign.provenance import is_trained, signed
from skipalign.results import Group, Run, Training, group, scores_by_id, training_window
from skipalign.scores import (
    at_window,
    common_starts,
    difference,
    paired,
    sections,
    settings_digest,
)
from skipalign.yaml_tree import read_yaml

_NORMAL = 1.959964  # standard errors on each side of a 95% interval
HOLDS, FAILS, UNJUDGED = "holds", "fails", "not judged"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a method may lose in short ability; a margin of None is not asked for.

    Args:
        against: the method that the others are judged by.
        perplexity: of held-out text at 1 x the training length: by what share it may be higher.
        needle: accuracy at 1 x the training length: by how much it may be lower.
        short_check: the share of short instructions followed: by how much it may be lower.
        lm_eval: each figure of lm-evaluation-harness that is better when higher: by how much it
            may be lower.
    """

    against: str = "normal"
    perplexity: float | None = 0.01
    needle: float | None = None
    short_check: float | None = None
    lm_eval: float | None = None

    def __post_init__(self) -> None:
        """Raises RecipeError for margins that are no shares, or none at all."""
        margins = self.margins
        if not margins:
            raise RecipeError("no margin is given; give one, such as perplexity: 0.01")
        for name, margin in margins.items():
            if not 0 <= margin < 1:
                raise RecipeError(
                    f"{name} is {margin:g}; it is a share and must be from 0 to below 1, as 0.01"
                )

    @property
    def margins(self) -> dict[str, float]:
        """The margins that are asked for, by what they are of."""
        given = asdict(self)
        del given["against"]
        return {name: margin for name, margin in given.items() if margin is not None}


def gate_of(run: Run) -> Gate | None:
    """Return the gate of a run's recipe, None where it has none.

    Raises:
        RecipeError: the recipe cannot be read, or its gate is none.
    """
    if run.recipe is None or "gate" not in run.recipe:
        return None
    where = str(run.folder / "recipe.yaml")
    tree = read_yaml(run.recipe.encode(), where)
    given = tree.get("gate") if isinstance(tree, dict) else None
    if given is None:
        return None
    known = [field.name for field in fields(Gate)]
    if not isinstance(given, dict) or not {*given} <= {*known}:
        raise RecipeError(f"{where}: gate: is {given}; its keys are {', '.join(known)}")
    try:
        return Gate(**given)
    except TypeError as error:
        raise RecipeError(f"{where}: gate: {error}; margins are numbers, as 0.01") from None


# ----------------------------------------------------------------------------------- judging


def judged(run: Run, gate: Gate) -> list[dict[str, Any]]:
    """Return a verdict for every trained method but `against`, and every margin.

    A verdict is {method, check, margin, verdict, loss, low, high, num_seeds, certain, reason}.
    `loss` is what the method has lost, as a share (perplexity) or as a difference; low and high are
    its 95% interval. It fails where the loss is above the margin; `certain` says whether the
    whole interval is on that side. Without figures it is not judged, and `reason` says why.
    """
    groups = group([run])
    against = next((each for each in groups if each.name == gate.against), None)
    window = training_window(groups)
    found: list[dict[str, Any]] = []
    for each in groups:
        if each.name == gate.against or not is_trained(each):
            continue
        for name, margin in gate.margins.items():
            losses = list(_losses(name, each, against, window)) if against else []
            reason = _reason(name, each, against, window, gate) if not losses else ""
            for loss in losses or [{"check": name}]:
                found.append({"method": each.name, **_verdict(loss, margin, reason)})
    return found


def _verdict(loss: Mapping[str, Any], margin: float, reason: str) -> dict[str, Any]:
    known: dict[str, Any] = {"loss": None, "low": None, "high": None, "num_seeds": 0}
    known |= {**loss, "margin": margin}
    if known["loss"] is None:
        return {**known, "verdict": UNJUDGED, "certain": False, "reason": reason}
    fails = known["loss"] > margin
    certain = known["low"] > margin if fails else known["high"] <= margin
    verdict = FAILS if fails else HOLDS
    return {**known, "verdict": verdict, "certain": certain, "reason": ""}


def _losses(name: str, each: Group, against: Group, window: int | None) -> Iterator[dict[str, Any]]:
    """Yield what a method has lost by one margin; nothing where it cannot be told."""
    if name in ("perplexity", "needle"):
        yield from _at_window(name, each, against, window)
    elif name == "short_check":
        yield from _by_sample(name, each, against)
    else:
        yield from _by_figure(name, each, against)


def _at_window(
    name: str, each: Group, against: Group, window: int | None
) -> Iterator[dict[str, Any]]:
    for section in sections([against, each], name):
        for row in at_window(paired(section, against), window):
            ends = [row[key] for key in ("difference", "low", "high")]
            if name == "perplexity":  # of nats per token; its exponential is a ratio
                loss, low, high = (math.exp(end) - 1 for end in ends)
            else:
                loss, low, high = -ends[0], -ends[2], -ends[1]
            check = f"{name} at {row['context_length']:,} tokens"
            yield _loss(check, (loss, low, high), row["num_seeds"])


def _by_sample(name: str, each: Group, against: Group) -> Iterator[dict[str, Any]]:
    """Compare answer by answer, seed by seed."""
    both = (
        (scores_by_id(other, name), scores_by_id(one, name))
        for one, other in _alike(name, each, against)
    )
    pairs = [
        ([before[key] for key in before], [after[key] for key in before])
        for before, after in both
        if before and before.keys() == after.keys()
    ]
    if pairs:
        found = difference(pairs)
        ends = (found["difference"], found["low"], found["high"])
        yield _loss(name, ends, found["num_seeds"])


def _by_figure(name: str, each: Group, against: Group) -> Iterator[dict[str, Any]]:
    """Compare the figures that both have; their single answers are not known.

    The error of a difference is taken as if both had answered other samples, and does not shrink
    with more seeds, which answered the same ones: too wide rather than too narrow.
    """
    losses: dict[str, list[tuple[float, float]]] = {}
    for one, other in _alike(name, each, against):
        before = {cell["name"]: cell for cell in other.documents[name]["cells"]}
        for cell in one.documents[name]["cells"]:
            theirs = before.get(cell["name"])
            known = theirs and cell["stderr"] is not None and theirs["stderr"] is not None
            if theirs and known and cell["higher_is_better"]:
                squared = cell["stderr"] ** 2 + theirs["stderr"] ** 2
                losses.setdefault(cell["name"], []).append((theirs["mean"] - cell["mean"], squared))
    for figure, found in losses.items():
        loss = fmean(value for value, _ in found)
        reach = _NORMAL * math.sqrt(fmean(squared for _, squared in found))
        yield _loss(f"{name}: {figure}", (loss, loss - reach, loss + reach), len(found))


def _alike(name: str, each: Group, against: Group) -> list[tuple[Training, Training]]:
    """Return the trainings of one seed and base that were measured in one way, pair by pair."""
    pairs = [
        (one.documents.get(name), other.documents.get(name), (one, other))
        for one, other in common_starts(each, against)
    ]
    return [
        pair
        for ours, theirs, pair in pairs
        if ours and theirs and settings_digest(ours) == settings_digest(theirs)
    ]


def _loss(check: str, ends: tuple[float, float, float], num_seeds: int) -> dict[str, Any]:
    loss, low, high = ends
    return {"check": check, "loss": loss, "low": low, "high": high, "num_seeds": num_seeds}


def _reason(name: str, each: Group, against: Group | None, window: int | None, gate: Gate) -> str:
    """Say why there are no figures to judge by."""
    if against is None:
        return f"the run has no method {gate.against}"
    lacking = [one.name for one in (each, against) if not one.documents(name)]
    if lacking:
        return f"{name} was not measured for {' and '.join(lacking)}"
    if name in ("perplexity", "needle"):
        if window is None:
            return "the training length is not known"
        lengths = {
            tokens for one in (each, against) for t in one.trainings for tokens in t.cells[name]
        }
        if not any(tokens <= window for tokens in lengths):
            return f"{name} was not measured within the training length of {window:,} tokens"
    return (
        f"no seed and base in common with {against.name} whose single answers were kept and that "
        "was measured in the same way"
    )


# ------------------------------------------------------------------------------------ the page


def gates(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the page says of the gate of every run that has one.

    A gate that cannot be read has a `problem` and nothing else.
    """
    found: list[dict[str, Any]] = []
    for run in runs:
        try:
            gate = gate_of(run)
        except RecipeError as error:
            found.append({"problem": str(error)})
            continue
        if gate is not None:
            found.append({"problem": "", "run": str(run.folder), **drawn(judged(run, gate), gate)})
    return found


def drawn(verdicts: Sequence[Mapping[str, Any]], gate: Gate) -> dict[str, Any]:
    """Return verdicts as a table, methods down and checks across, and who fails."""
    methods = list(dict.fromkeys(each["method"] for each in verdicts))
    checks = {each["check"]: each["margin"] for each in verdicts if each["loss"] is not None}
    # Without any figure a check has a column all the same.
    checks = checks or {each["check"]: each["margin"] for each in verdicts}
    cells = {(each["method"], each["check"]): _cell(each) for each in verdicts}
    by_method = {name: [one for one in verdicts if one["method"] == name] for name in methods}
    return {
        "against": gate.against,
        "columns": [{"text": name, "allowed": _allowed(name, m)} for name, m in checks.items()],
        "rows": [
            {
                "name": name,
                "cells": [cells.get((name, check)) for check in checks],
                "verdict": _worst(each),
            }
            for name, each in by_method.items()
        ],
        "failing": [name for name, each in by_method.items() if _worst(each) == FAILS],
        "num_methods": len(methods),
        "unjudged": [f"{each['method']}: {each['reason']}" for each in verdicts if each["reason"]],
    }


def _worst(verdicts: Sequence[Mapping[str, Any]]) -> str:
    found = {each["verdict"] for each in verdicts}
    return next(verdict for verdict in (FAILS, UNJUDGED, HOLDS) if verdict in found)


def _cell(verdict: Mapping[str, Any]) -> dict[str, str] | None:
    if verdict["loss"] is None:
        return None
    loss, low, high = (verdict[key] for key in ("loss", "low", "high"))
    if _is_ratio(verdict["check"]):
        text, *ends = (f"{signed(100 * value, 1)}%" for value in (loss, low, high))
    else:
        text, *ends = (signed(-value, 3) for value in (loss, high, low))
    sure = "" if verdict["certain"] else "; its interval reaches past the margin"
    return {
        "value": f"{loss:.6g}",
        "text": text,
        "interval": f"[{ends[0]}, {ends[1]}]",
        "verdict": verdict["verdict"],
        "label": f"{verdict['verdict']}{sure}; {verdict['num_seeds']} seed(s)",
        "sure": "" if verdict["certain"] else "?",
    }


def _allowed(check: str, margin: float) -> str:
    return f"at most +{100 * margin:g}%" if _is_ratio(check) else f"at least −{margin:g}"


def _is_ratio(check: str) -> bool:
    return check.startswith("perplexity")
