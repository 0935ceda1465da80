"""Results -> a table, a terminal table, one self-contained HTML page, the model card's figures.

The page needs no network and no script to be read. Its markup is in templates/, escaped by
Jinja; here is only what it says.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from skipalign import __version__, figures
from skipalign.errors import RunError
from skipalign.files import write_text
from skipalign.page import multiple, page, span
from skipalign.results import Group, Run, group, read_run, rows, sections, table, training_window

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["add_results_to_card", "table", "terminal_table", "write_report"]

# Dashes tell the lines apart where colour does not; with eight colours they do so for 40 lines.
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "4 2 1 2")
SIDE_BY_SIDE = 3  # methods whose figures and intervals fit into 80 columns
CARD_START, CARD_STOP = "<!-- results -->", "<!-- /results -->"


# -------------------------------------------------------------------------------- the HTML page


def write_report(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of one or more runs; return where it is.

    Args:
        run_dirs: run folders; the same method of two runs is shown as two methods.
        out: a file, or a folder to hold report.html; default the first run's folder.

    Raises:
        RunError: a folder is no run.
    """
    runs = [read_run(folder) for folder in run_dirs]
    if not runs:
        raise RunError("no run folder given; a report needs at least one, such as runs/tiny")
    path = Path(out) if out is not None else runs[0].folder
    path = path / "report.html" if path.is_dir() or not path.suffix else path
    write_text(path, _render(runs))
    return path


def _render(runs: Sequence[Run]) -> str:
    environment = Environment(
        loader=PackageLoader("skipalign"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = files("skipalign").joinpath("templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("report.html.jinja")
    return template.render(
        page(runs),
        version=__version__,
        dashes=DASHES,
        num_steps=figures.NUM_STEPS,
        shades={theme: figures.shades(theme) for theme in figures.RAMPS},
        script=Markup(script),  # noqa: S704 - our own file; the policy names its hash
        script_hash=f"sha256-{digest}",
    )


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
    title = "Needle accuracy by context length in tokens: mean over seeds, 95% interval"
    drawn = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    drawn.caption, drawn.caption_justify = _terminal_caption(found, window), "left"
    if len(methods) <= SIDE_BY_SIDE:
        for name in ("tokens", "×", *methods):
            drawn.add_column(Text(name), justify="right")
        for tokens, times in zip(lengths, multiples, strict=True):
            shown = (_terminal_cell(cells.get((method, tokens))) for method in methods)
            drawn.add_row(f"{tokens:,}", times, *shown)
        return drawn
    drawn.add_column("", no_wrap=True)
    for tokens, times in zip(lengths, multiples, strict=True):
        drawn.add_column(f"{tokens:,}\n{times}", justify="right", no_wrap=True)
    for method in methods:
        shown = (_terminal_cell(cells.get((method, tokens)), narrow=True) for tokens in lengths)
        drawn.add_row(Text(method), *shown)
    return drawn


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


# ------------------------------------------------------------------------------- the model card


def add_results_to_card(model_dir: str | Path, run_dir: str | Path) -> Path:
    """Write the run's needle accuracy between the marks of a model card; return the card.

    The first column is this model's own figures where its training lies in the run, then come
    the run's methods. A card without marks gets them at its end; twice is as once.

    Raises:
        RunError: there is no card, it has one mark without the other, or as `table`.
    """
    card = Path(model_dir) / "README.md"
    if not card.is_file():
        raise RunError(f"{card}: no such file; the results go into the card that training writes")
    text = card.read_text(encoding="utf-8")
    start, stop = text.find(CARD_START), text.find(CARD_STOP)
    if (start < 0) != (stop < 0) or stop < start:
        raise RunError(
            f"{card}: one of {CARD_START} and {CARD_STOP} is missing or they are the wrong way "
            "round; put both in, or remove both"
        )
    block = f"{CARD_START}\n{_card_block(Path(model_dir), Path(run_dir))}\n{CARD_STOP}"
    if start < 0:
        text = f"{text.rstrip()}\n\n{block}\n"
    else:
        text = text[:start] + block + text[stop + len(CARD_STOP) :]
    write_text(card, text)
    return card


def _card_block(model_dir: Path, run_dir: Path) -> str:
    found = [{**row, "method": _markdown(row["method"])} for row in table([run_dir])]
    if not found:
        return "Needle accuracy: not measured."
    run = read_run(run_dir)
    groups = group([run])
    folder = model_dir.resolve().parent
    own = [each for each in run.trainings if each.folder.resolve() == folder]
    if own and len(run.trainings) > 1:
        section = sections([Group("this model", tuple(own))], "needle")
        found = [*(rows(section[0]) if section else []), *found]
    methods = list(dict.fromkeys(row["method"] for row in found))
    cells = {(row["context_length"], row["method"]): _card_cell(row) for row in found}
    window = training_window(groups)
    lines = [
        "Needle in a haystack: share of right answers, mean over training seeds "
        "[95% interval], by context length in tokens"
        + (f"; training rows had at most {window:,} tokens." if window else "."),
        "",
        f"| tokens | {' | '.join(methods)} |",
        f"|---:|{'---:|' * len(methods)}",
    ]
    for tokens in sorted({row["context_length"] for row in found}):
        shown = (cells.get((tokens, method), "not measured") for method in methods)
        lines.append(f"| {tokens:,} | {' | '.join(shown)} |")
    counts = [f"{method}: {_card_counts(found, method)}" for method in methods]
    return "\n".join([*lines, "", f"Seeds and trials a figure: {'; '.join(counts)}."])


def _card_cell(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _card_counts(found: Sequence[Mapping[str, Any]], method: str) -> str:
    seeds, trials = (
        span([row[key] for row in found if row["method"] == method])
        for key in ("num_seeds", "num_trials")
    )
    return f"{seeds} and {trials}"


def _markdown(text: str) -> str:
    """Escape what would end a table cell or start markup."""
    text = " ".join(text.split())
    return "".join(f"&#{ord(sign)};" if sign in "|<>&[]`*_" else sign for sign in text)
