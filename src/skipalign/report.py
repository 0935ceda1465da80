"""Results -> one self-contained HTML page, a terminal table, a study's document, cards' figures.

The page needs no network and no script to be read. Its markup is in templates/, escaped by
Jinja; here is only what it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign import boards
from skipalign.comparison import multiple, span
from skipalign.errors import RunError
from skipalign.evaluation import longbench_table
from skipalign.evaluation.tasks import TASKS
from skipalign.files import write_json, write_text
from skipalign.gate import gate_of, judged
from skipalign.markup import render
from skipalign.page import page
from skipalign.provenance import costs, coverages, origin_of
from skipalign.results import (
    TOKENS_OF_TASK,
    Group,
    Run,
    Training,
    group,
    read_run,
    rows_of_training,
    training_window,
)
from skipalign.scores import (
    Section,
    at_window,
    only_section,
    paired,
    reference,
    rows,
    table,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "add_results_to_cards",
    "study_document",
    "table",
    "terminal_table",
    "terminal_tables",
    "write_report",
    "write_study_document",
]

# Dashes tell the lines apart where colour does not; with eight colours they do so for 40 lines.
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2 1 2")
SIDE_BY_SIDE = 3  # methods whose figures and intervals fit into 80 columns
CARD_START, CARD_STOP = "<!-- results -->", "<!-- /results -->"


# -------------------------------------------------------------------------------- the HTML page


def write_report(
    run_dirs: Sequence[str | Path], out: str | Path | None = None, *, against: str | None = None
) -> Path:
    """Write the page of one or more runs; return where it is.

    Args:
        run_dirs: run folders; the same method of two runs is shown as two methods.
        out: a file, or a folder to hold report.html; default the first run's folder.
        against: the method that differences are taken against; see `scores.reference`.

    Raises:
        RunError: a folder is no run.
    """
    runs = [read_run(folder) for folder in run_dirs]
    if not runs:
        raise RunError("no run folder given; a report needs at least one, such as runs/tiny")
    path = Path(out) if out is not None else runs[0].folder
    path = path / "report.html" if path.is_dir() or not path.suffix else path
    shown = render(
        "page.html.jinja",
        {**page(runs, against), "dashes": DASHES},
        style="report.css",
        scripts=("sort.js", "walk.js", "choose.js"),
    )
    write_text(path, shown)
    return path


# -------------------------------------------------------------------------------- the terminal


def terminal_table(run_dirs: Sequence[str | Path]) -> "Table":
    """Return needle accuracy by context length and method, for the end of a run.

    Raises:
        RunError: as `table`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    found = table(run_dirs)
    window = training_window(group([read_run(folder) for folder in run_dirs]))
    methods = list(dict.fromkeys(row["method"] for row in found))
    lengths = sorted({row["context_length"] for row in found})
    multiples = [multiple(tokens, window) for tokens in lengths]
    cells = {(row["method"], row["context_length"]): row for row in found}
    title = "Needle accuracy by tokens of context: mean over seeds, 95% interval"
    drawn = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    drawn.caption, drawn.caption_justify = _terminal_caption(found, window), "left"
    if len(methods) <= SIDE_BY_SIDE:
        for name in ("tokens", "×", *methods):
            drawn.add_column(Text(name), justify="right")
        for tokens, times in zip(lengths, multiples, strict=True):
            shown = (_terminal_cell(cells.get((method, tokens))) for method in methods)
            drawn.add_row(f"{tokens:,}", times, *shown)
        return drawn
    # A name may take both lines of its row; the figures never lose a digit.
    drawn.padding = (0, 1, 0, 0)
    drawn.add_column("", overflow="fold", min_width=10)
    for tokens, times in zip(lengths, multiples, strict=True):
        drawn.add_column(f"{tokens:,}\n{times}", justify="right", no_wrap=True)
    for method in methods:
        shown = (_terminal_cell(cells.get((method, tokens)), narrow=True) for tokens in lengths)
        drawn.add_row(Text(method), *shown)
    return drawn


def terminal_tables(run_dirs: Sequence[str | Path]) -> "list[Table]":
    """Return what there is to show at the end: LongBench's tables, and needle accuracy.

    What was not measured has no table.

    Raises:
        RunError: as `table`.
    """
    groups = group([read_run(folder) for folder in run_dirs])
    found = [
        longbench_table.terminal_table(
            document,
            name=each.name if training.seed is None else f"{each.name}, {training.label}",
        )
        for each in groups
        for training in each.trainings
        if (document := training.documents.get(boards.LONGBENCH))
    ]
    measured = any(each.documents("needle") for each in groups)
    return [*found, terminal_table(run_dirs)] if measured else found


def _terminal_cell(row: Mapping[str, Any] | None, *, narrow: bool = False) -> "Text":
    from rich.text import Text

    if row is None:
        return Text("–")
    low, high = (f"{row[key]:.2f}" for key in ("low", "high"))
    if not narrow:
        return Text(f"{row['mean']:.2f} [{low}, {high}]")
    low, high = (end.removeprefix("0").removesuffix(".00") for end in (low, high))
    return Text(f"{row['mean']:.2f}\n{low or 0}–{high or 0}")


def _terminal_caption(found: Sequence[Mapping[str, Any]], window: int | None) -> str:
    if not found:
        return "not measured"
    seeds, trials = (span([row[key] for row in found]) for key in ("num_seeds", "num_trials"))
    row = "; ×: multiples of the longest training row" if window else ""
    noun = "seed" if seeds == "1" else "seeds"
    return f"{seeds} {noun}, {trials} trials a figure{row}"


# ------------------------------------------------------------------------- the study's document


def study_document(run_dirs: Sequence[str | Path], *, against: str | None = None) -> dict[str, Any]:
    """Return what a run found as one document: `report --json-out` writes it.

    Differences are taken against the method `against`; see `scores.reference`.

    `rows` and `paired` are the needle's, `tasks` holds those of every other task over tokens,
    `boards` the rows of every benchmark told by its parts; `cost` and `coverage` are means over
    seeds, null where a method has none. `settings` tell how each task
    was measured; `gate` holds margins and verdicts, null where the recipe has none. `gate` and
    `environment` are by run folder where there are several. Equal runs give equal documents.

    Raises:
        RunError: as `table`, for any task.
        RecipeError: a recipe's gate cannot be read.
    """
    runs = [read_run(folder) for folder in run_dirs]
    groups = group(runs)
    window = training_window(groups)
    other = reference(groups, against)
    found = {task: only_section(groups, task) for task in TOKENS_OF_TASK}
    measured = {task: section for task, section in found.items() if section is not None}
    tables: dict[str, dict[str, Any]] = {
        task: {"measure": TASKS[task].measure, "rows": rows(each), "paired": paired(each, other)}
        for task, each in measured.items()
    }
    blocks = {task: boards.only_block(groups, task) for task in boards.NAMES}
    told = {task: block for task, block in blocks.items() if block is not None}
    needle = tables.pop("needle", {"rows": [], "paired": []})
    short = {row["method"]: row for row in at_window(needle["rows"], window)}
    origins = [origin_of(run) for run in runs]
    return {
        "rows": needle["rows"],
        "paired": needle["paired"],
        "tasks": tables,
        "gate": _of_runs(runs, [_gate(run) for run in runs]),
        "boards": {task: boards.rows(block) for task, block in told.items()},
        "reference": other.name if other else None,
        "training_window": window,
        "cost": costs(groups, short),
        "coverage": coverages(groups),
        "seeds": sorted({seed for each in groups for seed in each.seeds}),
        "settings": {
            **{task: {"digest": one.digest, **one.settings} for task, one in measured.items()},
            **{task: dict(block.settings) for task, block in told.items()},
        },
        "environment": _of_runs(runs, origins),
    }


def _of_runs(runs: Sequence[Run], values: Sequence[Any]) -> Any:
    """Return the value of the one run; of several by the names of their folders."""
    named = {run.folder.resolve().name: value for run, value in zip(runs, values, strict=True)}
    return named if len(runs) > 1 else values[0]


def _gate(run: Run) -> dict[str, Any] | None:
    gate = gate_of(run)
    return {**asdict(gate), "verdicts": judged(run, gate)} if gate else None


def write_study_document(
    run_dirs: Sequence[str | Path], out: str | Path, *, against: str | None = None
) -> Path:
    """Write `study_document` to `out`; return where it is.

    Raises:
        RunError: as `table`, for any task.
    """
    write_json(out, study_document(run_dirs, against=against))
    return Path(out)


# ------------------------------------------------------------------------------- the model card


def add_results_to_cards(model_dirs: Sequence[str | Path], run_dir: str | Path) -> list[Path]:
    """Write the run's needle accuracy between the marks of model cards; return the cards.

    The first row is the model's own figures where its training lies in the run, then come the
    run's methods. A card without marks gets them at its end; twice is as once.

    Raises:
        RunError: there is no card, it has one mark without the other, or as `table`.
    """
    run = read_run(run_dir)
    groups = group([run])
    section = only_section(groups, "needle")
    cards: list[Path] = []
    for model_dir in model_dirs:
        card = Path(model_dir) / "README.md"
        if not card.is_file():
            raise RunError(f"{card}: no such file; results go into the card that training writes")
        folder = card.parent.resolve().parent
        own = [each for each in run.trainings if each.folder.resolve() == folder]
        own = own if len(run.trainings) > 1 else []
        _put_between_marks(card, _card_block(section, rows_of_training(groups), own))
        cards.append(card)
    return cards


def _put_between_marks(card: Path, text: str) -> None:
    old = card.read_text(encoding="utf-8")
    start, stop = old.find(CARD_START), old.find(CARD_STOP)
    if (start < 0) != (stop < 0) or stop < start:
        raise RunError(
            f"{card}: one of {CARD_START} and {CARD_STOP} is missing or they are the wrong way "
            "round; put both in, or remove both"
        )
    block = f"{CARD_START}\n{text}\n{CARD_STOP}"
    if start < 0:
        write_text(card, f"{old.rstrip()}\n\n{block}\n")
    else:
        write_text(card, old[:start] + block + old[stop + len(CARD_STOP) :])


def _card_block(section: Section | None, training: str | None, own: Sequence[Training]) -> str:
    found = rows(section) if section else []
    if section is None or not found:
        return "Needle accuracy: not measured."
    methods = list(dict.fromkeys(row["method"] for row in found))
    figures_of = {name: [row for row in found if row["method"] == name] for name in methods}
    mine = rows(replace(section, groups=(Group("this model", tuple(own)),))) if own else []
    shown = {"this model": mine} if mine else {}
    shown |= {_markdown(name): each for name, each in figures_of.items()}
    lengths = sorted({row["context_length"] for row in found})
    lines = [
        "Needle in a haystack: share of right answers, mean over training seeds "
        "[95% interval], by context length in tokens"
        + (f"; training rows had at most {training}." if training else "."),
        "",
        f"| method | {' | '.join(f'{tokens:,}' for tokens in lengths)} | seeds | trials |",
        f"|---|{'---:|' * (len(lengths) + 2)}",
    ]
    for name, each in shown.items():
        cells = {row["context_length"]: _card_cell(row) for row in each}
        seeds, trials = (span([row[key] for row in each]) for key in ("num_seeds", "num_trials"))
        texts = [cells.get(tokens, "not measured") for tokens in lengths]
        lines.append(f"| {name} | {' | '.join(texts)} | {seeds} | {trials} |")
    return "\n".join(lines)


def _card_cell(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _markdown(text: str) -> str:
    """Escape what would end a table cell or start markup."""
    text = " ".join(text.split())
    return "".join(f"&#{ord(sign)};" if sign in "|<>&[]`*_" else sign for sign in text)
