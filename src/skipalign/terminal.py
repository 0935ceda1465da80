"""What a terminal is given: JSON, counts, scores, the last line.

Results go to stdout, all else to stderr. rich is imported where a console or a bar is asked for.
"""

import json
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from skipalign.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

    from skipalign.progress import Progress


def hush(*, verbose: bool) -> None:
    """Silence the libraries, whose warnings are meant for programmers, unless `verbose`."""
    if verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it tells each of its retries otherwise
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")


def console() -> "Console":
    """Return a console on stdout."""
    from rich.console import Console

    return Console()


def progress_for(*, quiet: bool) -> "Progress":
    """Return bars on stderr, or silence."""
    from skipalign.progress import Silent, Terminal

    return Silent() if quiet else Terminal()


def say(message: str) -> None:
    """Print one line on stderr."""
    click.echo(visible(" ".join(message.split())), err=True)


def last_line(made: str, following: str, *, as_json: bool) -> None:
    """Print what was made and the next command; beside JSON it goes to stderr."""
    click.echo(visible(f"{made}; next: {following}"), err=as_json)


def print_json(value: Any) -> None:
    """Print JSON in ASCII: nothing in a model's or a data set's text can steer a terminal."""
    click.echo(json.dumps(value, indent=1))


def print_accounting(accounting: Mapping[str, Any]) -> None:
    """Print what became of the rows of every source: used, rejected, dropped, by reason."""
    for name, counts in accounting["sources"].items():
        lost = {kind: sum(counts[kind].values()) for kind in ("rejected", "dropped")}
        click.echo(
            f"{visible(name)}: {counts['rows_read']:,} rows read = {counts['used']:,} used"
            f" + {lost['rejected']:,} rejected + {lost['dropped']:,} dropped; "
            f"{counts['examples']:,} samples, {counts['tokens']:,} tokens, "
            f"{counts['trained_tokens']:,} trained"
        )
        for kind in ("rejected", "dropped", "notes"):
            for reason, number in sorted(counts[kind].items()):
                click.echo(f"  {kind}: {visible(reason)} {number:,}")


def print_seconds(seconds: Mapping[str, float]) -> None:
    """Print the time by stage."""
    stages = ", ".join(f"{stage} {spent:,.0f} s" for stage, spent in seconds.items())
    click.echo(f"time: {stages}; together {sum(seconds.values()):,.0f} s")


def print_longbench(document: Mapping[str, Any]) -> None:
    """Print the table of LongBench's scores, and on stderr what must be known of them."""
    from skipalign.evaluation.longbench_table import notes, terminal_table

    console().print(terminal_table(document))
    for note in notes(document):
        say(note)


def print_cells(results: Mapping[str, Any]) -> None:
    """Print the scores of a task with their intervals, by what the task is shown against."""
    from skipalign.evaluation.tasks import TASKS

    task = TASKS[results["task"]]
    summary: Mapping[str, Any] = results.get("summary") or {}
    together = [{"name": "all", **summary["all"]}] if "all" in summary else []
    for cell in [*task.rows(results), *together]:
        place = f"{task.against} {cell[task.against]:>9,}: " if task.against else ""
        place = f"{visible(str(cell['name']))}: " if "name" in cell else place
        counted = f"{cell['correct']} of {cell['n']}" if "correct" in cell else f"n {cell['n']:,}"
        known = cell["low"] is not None
        interval = f"[{cell['low']:.3f}, {cell['high']:.3f}]" if known else "(no interval)"
        click.echo(f"{place}{cell['mean']:.3f} {interval} {task.measure}, {counted}")
