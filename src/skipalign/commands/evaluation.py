"""evaluate, score, report: from models to figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from skipalign.commands.options import (
    JSON,
    OUTPUT,
    OVERRIDES,
    load,
    names,
    numbers,
)
from skipalign.terminal import (
    console,
    hush,
    last_line,
    print_cells,
    print_json,
    print_longbench,
    progress_for,
)

# Options of `evaluate` that are keys of a task's settings; KEY=VALUE sets any other.
TASK_OPTIONS = (
    *("lengths", "depths", "distances", "context_length", "trials", "seed", "haystack", "reuse"),
    *("data", "tasks", "e"),
)
STUDY_DOCUMENT = "A file for all figures: scores, paired differences, cost, coverage, conditions."


def _task(_: click.Context, __: click.Parameter, value: str) -> str:
    from skipalign.evaluation.tasks import TASKS  # not for --help, which stays quick

    if value not in TASKS:
        raise click.BadParameter(f"{value!r} is none of {', '.join(TASKS)}")
    return value


def _depths(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    return int(value) if value and value.isdecimal() else numbers(float)(context, parameter, value)


@click.command()
@click.argument("model")
@OVERRIDES
@click.option(
    "--task",
    metavar="NAME",
    callback=_task,
    required=True,
    help="As needle; a wrong one lists all.",
)
@click.option("--lengths", metavar="N,...", callback=numbers(int), help="Tokens of a prompt.")
@click.option("--depths", metavar="N|F,...", callback=_depths, help="Needle: how many, or which.")
@click.option("--distances", metavar="N,...", callback=numbers(int), help="Stretch: positions.")
@click.option("--context-length", type=int, help="Stretch: real tokens of a prompt.")
@click.option("--trials", type=click.IntRange(min=1), help="Prompts a cell.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the prompts.")
@click.option("--haystack", type=click.Path(exists=True), help="Prose: a text file or a folder.")
@click.option("--reuse/--no-reuse", default=None, help="Needle: compute shared beginnings once.")
@click.option("--data", metavar="PATH", help="LongBench: a folder of TASK.jsonl, or data.zip.")
@click.option("--tasks", metavar="NAME,...", callback=names, help="LongBench: which of them.")
@click.option("--e", is_flag=True, default=None, help="LongBench-E, by length.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where results go.")
@click.option("--overwrite", is_flag=True, help="Throw away other results in OUT.")
@OUTPUT
def evaluate(model: str, overrides: Sequence[str], **given: Any) -> None:
    """Measure a model in one task, such as a grid of needles.

    MODEL is a folder or a hub id. KEY=VALUE sets any other key of the task, such as
    needle='The code of {key} is {value}.'. What is not given is as in the recipe of the run
    that MODEL lies in, else the default. Results go beside the model, else to ./evaluation/TASK.
    """
    hush(verbose=given["verbose"])
    task, run_dir = given["task"], _run_of(model)
    settings = _task_settings(run_dir, overrides, given)
    from skipalign import study
    from skipalign.evaluation.tasks import TASKS

    beside = _relative(_training_of(model) or Path.cwd())
    out = given["out"] or (beside / TASKS[task].document).parent
    if given["overwrite"]:
        for old in (out / f"{task}.trials.jsonl", *out.glob("predictions/*.json*")):
            old.unlink(missing_ok=True)
    results = study.evaluate_model(model, settings, out, progress_for(quiet=given["quiet"]))
    shown = print_longbench if "averages" in results else print_cells
    (print_json if given["as_json"] else shown)(results)
    look = f"look at {out / f'{task}.png'}"
    if (out / "predictions").exists():
        look = f"skipalign score {out / 'predictions'}"
    following = f"skipalign report {run_dir}" if run_dir else look
    last_line(f"made {out / f'{task}.json'}", following, as_json=given["as_json"])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--e", is_flag=True, help="In the three buckets of length of LongBench-E.")
@click.option("--official-faults", is_flag=True, help="0 where the official code fails.")
@JSON
def score(folder: Path, e: bool, official_faults: bool, as_json: bool) -> None:
    """Score stored LongBench answers without a model.

    FOLDER holds one TASK.jsonl a task, in the official fields: pred, answers, all_classes, length.
    """
    hush(verbose=False)
    from skipalign.evaluation.longbench_score import score_folder

    found = score_folder(folder, e=e, official_faults=official_faults)
    (print_json if as_json else print_longbench)(found)
    following = f"skipalign score {folder} --json > scores.json"
    last_line(f"scored {len(found['tasks'])} task(s) of {folder}", following, as_json=as_json)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page, or a folder for it.")
@click.option("--json-out", type=click.Path(dir_okay=False, path_type=Path), help=STUDY_DOCUMENT)
@OUTPUT
def report(runs: Sequence[Path], out: Path | None, **given: Any) -> None:
    """Write one page of one or more runs; print their table."""
    hush(verbose=given["verbose"])
    from skipalign import report as room

    made = str(room.write_report(runs, out))
    if given["json_out"]:
        made += f" and {room.write_study_document(runs, given['json_out'])}"
    if given["as_json"]:
        print_json(room.table(runs))
    else:
        console().print(room.terminal_table(runs))
    last_line(f"made {made}", "open it in a browser", as_json=given["as_json"])


def _task_settings(run_dir: Path | None, overrides: Sequence[str], given: Mapping[str, Any]) -> Any:
    """Return the settings of a task: options, then KEY=VALUE, then the recipe of the run."""
    from skipalign.evaluation.tasks import TASKS
    from skipalign.schema import plain, read_task
    from skipalign.yaml_tree import overridden

    task = TASKS[given["task"]]
    asked = {name: given[name] for name in TASK_OPTIONS if given[name] is not None}
    for name in asked:
        if name not in task.options:
            others = " or ".join(each.name for each in TASKS.values() if name in each.options)
            raise click.UsageError(f"--{_dashed(name)} belongs to --task {others}")
    stored = load(str(run_dir / "recipe.yaml")).tasks if run_dir else {}
    values: dict[str, Any] = plain(stored.get(task.name)) or {}
    if given["lengths"] and isinstance(values.get("trials"), dict):
        del values["trials"]  # they were given by length, for other lengths
    for override in overrides:
        values = overridden(values, override)
    values |= asked
    if missing := [name for name in task.required if name not in values]:
        words = [
            f"--{_dashed(name)}" if name in TASK_OPTIONS else f"{name}=..." for name in missing
        ]
        raise click.UsageError(
            f"give {' and '.join(words)}; there is no recipe of a run to take them from"
        )
    return read_task(task.name, values, f"--task {task.name}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _training_of(model: str) -> Path | None:
    """Return the folder of the training that made a model, or None."""
    folder = Path(model).resolve().parent
    return folder if (folder / "training.json").exists() else None


def _run_of(model: str) -> Path | None:
    """Return the run folder that a model lies in: its training's, or two above METHOD/seed-N."""
    folder = _training_of(model)
    around = [folder, *folder.parents[1:2]] if folder else []
    return next((_relative(each) for each in around if (each / "recipe.yaml").exists()), None)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
