"""Results -> where they come from: settings, cost, coverage, the data's fate, the probe's verdicts.

Numbers for the study's document, and rows of text for the page's tables.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from skipalign.evaluation.tasks import TASKS
from skipalign.origin import NOT_RECORDED, exactness
from skipalign.results import Group, Run, Training
from skipalign.scores import side

COUNTS = ("steps", "tokens", "trained_tokens", "max_row_tokens")
COVERAGE = ("covered_fraction", "uniform_distance", "mean_run")
# What a training.json says about what happened, not about what was asked for.
OUTCOMES = {
    *("schema_version", "method", "seed", "order", "seconds", "interrupted", "num_sequences"),
    *("data_sha256", "base_license"),
    *COUNTS,
}
ACCOUNT_HEAD = (
    *("source", "rows read", "used", "rejected", "dropped"),
    *("samples", "tokens", "trained tokens"),
)
STAGES = ("prepare", "train", *TASKS)
# Settings of more methods than these are listed by method, of fewer they stand side by side.
SIDE_BY_SIDE = 6
ABSENT = "–"
# What a folder without environment.json, as `skipalign evaluate` makes it, does not say.
UNTOLD = dict.fromkeys(("commit", "command", "cpu", "num_processes", "data"), NOT_RECORDED)
EXACT = ("mean", "low", "high", "difference")
# Beside a difference whose interval lies above or below 0.
MARKS = {1: "▲", -1: "▼", 0: ""}


def origin_of(run: Run) -> dict[str, Any]:
    """Return what a run's figures come from: its environment.json, and the digests of its files.

    `data` is the sha256 of each file that was trained on, by source and file; `bases` the digest
    of the weights that were trained; `exact` says which figures another run gives again.
    """
    documents = [each.documents.get("training", {}) for each in run.trainings]
    data = {
        f"{source}/{file}": digest
        for document in documents
        for source, files in (document.get("data_sha256") or {}).items()
        for file, digest in files.items()
    }
    bases = {
        str(document["base"]["path"]): document["base_digest"]
        for document in documents
        if document.get("base_digest")
    }
    told = {key: each for key, each in (run.environment or {}).items() if key != "schema_version"}
    found = {**UNTOLD, "cuda": None, **told, "bases": bases}
    if data or not any(each.get("train", True) for each in documents):
        found["data"] = data
    kinds = exactness(EXACT, ("seconds",), on_gpu=bool(told.get("gpus")))
    return {**found, "exact": kinds}


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return a nested document as (dotted name, text), without its schema version."""
    found: list[tuple[str, str]] = []
    for key, each in value.items():
        if key == "schema_version":
            continue
        if isinstance(each, list) and each and isinstance(each[0], Mapping):
            each = {str(item.get("name", place)): item for place, item in enumerate(each)}
        if isinstance(each, Mapping) and each:
            found.extend(flatten(each, f"{prefix}{key}."))
        else:
            found.append((f"{prefix}{key}", _text(each)))
    return found


def _text(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(each, (str, int, float)) for each in value):
        return ", ".join(map(_text, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings(groups: Sequence[Group]) -> dict[str, Any]:
    """Divide the settings into those equal for all methods and those that differ."""
    trained = [each for each in groups if each.documents("training")]
    alike = all(_is_one_strategy(one) for each in trained for one in each.documents("training"))
    columns = {each.name: _asked_of(each, as_one=alike) for each in trained}
    equal: list[tuple[str, str]] = []
    differing: list[list[str]] = []
    for key in _in_families(columns.values()):
        values = [_value(column, key) for column in columns.values()]
        if len(set(values)) == 1:
            equal.append((key, values[0]))
        else:
            differing.append([key, *values])
    return {
        "head": ["setting", *columns],
        "equal": equal,
        "differing": differing,
        "by_method": _by_method(list(columns), differing) if len(columns) > SIDE_BY_SIDE else [],
    }


def _by_method(names: Sequence[str], differing: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return what more than half of the methods have, and where each is unlike that."""
    shared: dict[str, str] = {}
    own: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, *values in differing:
        value, count = Counter(values).most_common(1)[0]
        usual = value if 2 * count > len(values) else ABSENT
        if usual not in (ABSENT, "none"):
            shared[key] = usual
        for name, value in zip(names, values, strict=True):
            # What a method lacks because it has nothing of that kind goes without saying.
            if value not in (usual, ABSENT) and not (usual == ABSENT and value == "none"):
                own[name][key] = value
    listed = [("most methods", shared)] if shared else []
    return [
        (
            name,
            "; ".join(f"{key.removeprefix('strategies.')} {value}" for key, value in each.items()),
        )
        for name, each in [*listed, *own.items()]
    ]


def _is_one_strategy(document: Mapping[str, Any]) -> bool:
    """Whether several sources have one strategy, which is then shown once."""
    strategies = list((document.get("strategies") or {}).values())
    return len(strategies) > 1 and all(strategy == strategies[0] for strategy in strategies)


def _asked_of(each: Group, *, as_one: bool) -> dict[str, str]:
    """Return the settings of a method; a value that differs by seed lists them all."""
    seeds: list[dict[str, str]] = []
    for document in each.documents("training"):
        asked = {key: document[key] for key in document if key not in OUTCOMES}
        if as_one:
            asked["strategies"] = {"all": next(iter(document["strategies"].values()))}
        seeds.append(dict(flatten(asked)))
    keys = dict.fromkeys(key for seed in seeds for key in seed)
    return {key: _joined(_value(seed, key) for seed in seeds) for key in keys}


def _in_families(columns: Iterable[Mapping[str, str]]) -> list[str]:
    """Return all keys, those with a common parent together, a parent with children left out."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    parents = {key.rpartition(".")[0] for key in keys}
    families = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    kept = [key for key in keys if key not in parents]
    return sorted(kept, key=lambda key: families.index(key.partition(".")[0]))


def _value(column: Mapping[str, str], key: str) -> str:
    """Return a setting; where a method has the parent only (key_bias: none), the parent's."""
    return column.get(key, column.get(key.rpartition(".")[0], ABSENT))


def _joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def is_trained(each: Group) -> bool:
    """Whether a method has trainings; one whose base is only extended has none."""
    documents = each.documents("training")
    return not documents or any(document.get("train", True) for document in documents)


def costs(groups: Sequence[Group], short: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what each method took, as means over its seeds; None is what a method has not.

    Args:
        groups: the methods.
        short: the needle row of each method at the training window: what it costs in short ability.
    """
    kept = ("mean", "low", "high", "num_seeds", "num_trials")
    found: list[dict[str, Any]] = []
    for each in groups:
        row = short.get(each.name)
        documents = each.documents("training")
        found.append(
            {
                "method": each.name,
                "num_seeds": len(each.trainings),
                **{name: _mean(documents, name) for name in ("seconds", *COUNTS)},
                "short": {key: row[key] for key in ("context_length", *kept)} if row else None,
            }
        )
    return found


def cost(
    groups: Sequence[Group],
    short: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the page's tables of cost.

    Args:
        groups: the methods.
        short: as in `costs`.
        differences: of each method from the reference, at the same length.
    """
    found = costs(groups, short)
    first = next(iter(short.values()), {"context_length": None})["context_length"]
    against = next(iter(differences.values()), {"against": None})["against"]
    head = ["method", "seeds", "training time", *(name.replace("_", " ") for name in COUNTS[:-1])]
    head += ["tokens per row"]
    head += [f"accuracy at {first:,} tokens"] if first else []
    head += [f"less {against}"] if against else []
    table_rows = [
        [row["method"], str(row["num_seeds"]), *_cost_cells(row)]
        + ([_score(row["short"])] if first else [])
        + ([_difference(differences.get(row["method"]))] if against else [])
        for row in found
    ]
    timed = [document for each in groups for document in each.documents("seconds")]
    sums = {stage: sum(_numbers(timed, stage)) for stage in STAGES}
    total = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in sums.items() if seconds)
    if total:
        total += f"; together {duration(sum(sums.values()))}"
    measured = any(set(_cost_cells(row)) != {ABSENT} for row in found) or bool(timed)
    return {
        "cost_head": head,
        "cost_rows": table_rows if measured else [],
        "cost_total": total,
        **_stages(groups, [stage for stage, seconds in sums.items() if seconds]),
    }


def _stages(groups: Sequence[Group], stages: Sequence[str]) -> dict[str, Any]:
    table_rows = [
        [
            each.name,
            *(_text_of(_mean(each.documents("seconds"), name), duration) for name in stages),
        ]
        for each in groups
        if each.documents("seconds")
    ]
    return {"stage_head": ["method", *stages], "stage_rows": table_rows if stages else []}


def _cost_cells(row: Mapping[str, Any]) -> list[str]:
    counts = [_text_of(row[name], "{:,.0f}".format) for name in COUNTS]
    return [_text_of(row["seconds"], duration), *counts]


def _score(row: Mapping[str, Any] | None) -> str:
    return _kept(f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]") if row else ABSENT


def _difference(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ABSENT
    mean, low, high = (signed(row[key], 2) for key in ("difference", "low", "high"))
    return _kept(f"{mean} [{low}, {high}] {MARKS[side(row)]}".rstrip())


def _kept(text: str) -> str:
    """Return text that is not broken at its spaces."""
    return text.replace(" ", "\u00a0")


def signed(value: float, places: int) -> str:
    """Return a difference as +0.25, −0.25 or 0.00."""
    text = f"{value:+.{places}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{places}f}") == 0 else text


def _numbers(documents: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = (document.get(name) for document in documents)
    return [float(value) for value in values if isinstance(value, (int, float))]


def _mean(documents: Sequence[Mapping[str, Any]], name: str) -> float | None:
    numbers = _numbers(documents, name)
    return fmean(numbers) if numbers else None


def _text_of(value: float | None, shown: Callable[[float], str]) -> str:
    return ABSENT if value is None else shown(value)


def is_packed_as_one(each: Group) -> bool:
    """Whether rows hold several samples as one text, of which coverage counts none together."""
    packings = (document.get("packing") or {} for document in each.documents("training"))
    return any(packing.get("attention") == "causal" for packing in packings)


def coverages(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return each method's coverage figures, as means over its seeds; None where it has none."""
    found: list[dict[str, Any]] = []
    for each in groups:
        documents = each.documents("coverage")
        first = documents[0] if documents else {}
        named = ("strategy", "max_position", "num_samples", "num_examples")
        found.append(
            {
                "method": each.name,
                **{name: first.get(name) for name in named},
                **{name: _mean(documents, name) for name in COVERAGE},
            }
        )
    return found


def duration(seconds: float) -> str:
    """Return a time as people say it: 8.2 s, 3 min 12 s, 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def accounts(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the data accounting, once for all trainings that have the same one."""
    alike: dict[str, tuple[list[tuple[Group, Training]], Mapping[str, Any]]] = {}
    for each in groups:
        for training in each.trainings:
            document = training.documents.get("accounting")
            if document:
                key = json.dumps(document, sort_keys=True)
                alike.setdefault(key, ([], document))[0].append((each, training))
    return [
        _account("All trainings" if len(alike) == 1 else _whose(members), document)
        for members, document in alike.values()
    ]


def _whose(members: Sequence[tuple[Group, Training]]) -> str:
    """Name the trainings; those of a whole method by the method alone."""
    labels: dict[str, list[str]] = {}
    whole: dict[str, int] = {}
    for each, training in members:
        labels.setdefault(each.name, []).append(training.label)
        whole[each.name] = len(each.documents("accounting"))
    return ", ".join(
        name if len(found) == whole[name] > 1 else ", ".join(f"{name} {label}" for label in found)
        for name, found in labels.items()
    )


def _account(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Lay out one accounting.json: rows read = used + rejected + dropped, by source."""
    sources: dict[str, Mapping[str, Any]] = dict(document["sources"])
    reasons: list[list[str]] = []
    notes: list[list[str]] = []
    for source, found in sources.items():
        for outcome in ("rejected", "dropped"):
            by_reason = sorted((found.get(outcome) or {}).items())
            reasons += [[source, outcome, reason, f"{n:,}"] for reason, n in by_reason]
        notes += [[source, note, _text(n)] for note, n in (found.get("notes") or {}).items()]
    if len(sources) > 1 and "total" in document:
        sources["all sources"] = document["total"]
    counts = {source: _row_counts(found) for source, found in sources.items()}
    extent = ("examples", "tokens", "trained_tokens")
    return {
        "name": name,
        "head": ACCOUNT_HEAD,
        "rows": [
            [source, *(f"{n:,}" for n in counts[source])]
            + [f"{found[key]:,}" if key in found else "–" for key in extent]
            for source, found in sources.items()
        ],
        "reasons": reasons,
        "notes": notes,
        "problems": [
            f"{source}: {read:,} rows read are not {used:,} used + {rejected:,} rejected + "
            f"{dropped:,} dropped"
            for source, (read, used, rejected, dropped) in counts.items()
            if read != used + rejected + dropped
        ],
    }


def _row_counts(found: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return rows read, used, rejected and dropped."""
    rejected, dropped = (sum((found.get(key) or {}).values()) for key in ("rejected", "dropped"))
    return int(found.get("rows_read") or 0), int(found.get("used") or 0), rejected, dropped


def probes(groups: Sequence[Group]) -> dict[str, Any]:
    """Return how many trainings of each method passed each check, and every single verdict."""
    single: list[list[str]] = []
    passed: dict[str, dict[str, list[bool]]] = {}
    for each in groups:
        for training in each.trainings:
            document = training.documents.get("probe", {})
            attention = _text(document.get("attn_implementation", "–"))
            for check in document.get("checks") or []:
                name, verdict = _text(check.get("name")), bool(check.get("passed"))
                passed.setdefault(each.name, {}).setdefault(name, []).append(verdict)
                numbers = [_measure(check.get(key)) for key in ("change", "threshold")]
                found = "passed" if verdict else "FAILED"
                single.append([each.name, training.label, name, attention, found, *numbers])
    checks = list(dict.fromkeys(name for found in passed.values() for name in found))
    counted = [
        [method, *(_passed(found.get(name, [])) for name in checks)]
        for method, found in passed.items()
    ]
    head = ["method", "training", "check", "attention", "verdict", "change (logits)", "threshold"]
    return {
        "probes": {"head": ["method", *checks], "rows": counted},
        "verdicts": {"head": head, "rows": single},
    }


def _passed(verdicts: Sequence[bool]) -> str:
    if not verdicts:
        return "–"
    failed = len(verdicts) - sum(verdicts)
    count = f"{failed or len(verdicts)} of {len(verdicts)}"
    return f"{count} FAILED" if failed else f"{count} passed"


def _measure(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, (int, float)) else "–"
