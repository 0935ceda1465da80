"""evaluate, score, report: from models to figures."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from skipalign.commands.options import (
    OVERRIDES,
    load,
    names,
    numbers,
    options,
    output,
)
from skipalign.errors import ModelError
from skipalign.files import alone_in
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


def _task(
    context: click.Context, parameter: click.Parameter, value: str
) -> tuple[str, tuple[str, ...] | None]:
    """Return the task, and what is named behind it: lm-eval:arc_easy,hellaswag."""
    from skipalign.evaluation.tasks import TASKS  # not for --help, which stays quick

    name, colon, listed = value.partition(":")
    task = name.replace("-", "_")
    if task not in TASKS:
        raise click.BadParameter(f"{name!r} is none of {', '.join(TASKS)}")
    return task, names(context, parameter, listed) if colon else None


def _depths(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    return int(value) if value and value.isdecimal() else numbers(float)(context, parameter, value)


BACKEND = options(
    click.option(
        "--backend",
        type=click.Choice(["transformers", "http", "vllm"]),
        default="transformers",
        show_default=True,
        help="What answers: http is any OpenAI-compatible server.",
    ),
    click.option("--base-url", metavar="URL", help="http: of the server, mostly ending in /v1."),
    click.option("--tokenizer", metavar="PATH", help="http: what counts and cuts prompts."),
    click.option(
        "--api-key-env",
        metavar="NAME",
        help="http: the variable that holds the key, else OPENAI_API_KEY; '' sends none.",
    ),
    click.option(
        "--with",
        "backend_settings",
        metavar="KEY=VALUE",
        multiple=True,
        help="http, vllm: such as send=ids, concurrency=8 or max_model_len=32768.",
    ),
)


@click.command()
@click.argument("model")
@OVERRIDES
@click.option(
    "--task",
    metavar="NAME",
    callback=_task,
    required=True,
    help="As needle, or lm-eval:arc_easy,hellaswag; a wrong one lists all.",
)
@click.option("--lengths", metavar="N,...", callback=numbers(int), help="Tokens of a prompt.")
@click.option("--depths", metavar="N|F,...", callback=_depths, help="Needle: how many, or which.")
@click.option("--distances", metavar="N,...", callback=numbers(int), help="Stretch: positions.")
@click.option("--context-length", type=int, help="Stretch: real tokens of a prompt.")
@click.option("--trials", type=click.IntRange(min=1), help="Prompts a cell.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the prompts.")
@click.option("--haystack", type=click.Path(exists=True), help="Prose: a text file or a folder.")
@click.option("--reuse/--no-reuse", default=None, help="Needle: compute shared beginnings once.")
@click.option(
    "--data", metavar="PATH", help="A benchmark's files; LongBench: TASK.jsonl or data.zip."
)
@click.option("--tasks", metavar="NAME,...", callback=names, help="LongBench, lm-eval: which.")
@click.option("--e", is_flag=True, default=None, help="LongBench-E, by length.")
@BACKEND
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where results go.")
@click.option("--overwrite", is_flag=True, help="Throw away other results in OUT.")
@output("the task's document: settings, cells with n and interval")
def evaluate(model: str, overrides: Sequence[str], **given: Any) -> None:
    """Measure a model in one task, such as a grid of needles.

    MODEL is a folder, a hub id, or with --backend http what the server calls it. KEY=VALUE sets
    any other key of the task, such as needle='The code of {key} is {value}.'. What is not given
    is as in the recipe of the run that MODEL lies in, else the default. Results go beside the
    model, else to ./evaluation/TASK.
    """
    hush(verbose=given["verbose"])
    given["task"], named = given["task"]
    given["tasks"] = _one_of(named, given["tasks"])
    task, is_here = given["task"], given["backend"] != "http"
    run_dir = _run_of(model) if is_here else None
    settings = _task_settings(run_dir, overrides, given)
    from skipalign.evaluation.tasks import TASKS

    answers = _answering(model, given)
    beside = _relative((_training_of(model) if is_here else None) or Path.cwd())
    out = given["out"] or (beside / TASKS[task].document).parent
    if given["overwrite"]:
        with alone_in(out):
            for old in (out / f"{task}.trials.jsonl", *out.glob("predictions/*.json*")):
                old.unlink(missing_ok=True)
    results = answers(settings, out, progress_for(quiet=given["quiet"]))
    shown = print_longbench if "averages" in results else print_cells
    (print_json if given["as_json"] else shown)(results)
    following = f"skipalign report {run_dir or out}"
    last_line(f"made {out / f'{task}.json'}", following, as_json=given["as_json"])


def _one_of(named: tuple[str, ...] | None, listed: tuple[str, ...] | None) -> Any:
    """Return the tasks named behind --task, or those of --tasks."""
    if named is not None and listed is not None:
        raise click.UsageError("tasks are named behind --task and by --tasks; keep one of them")
    return listed if named is None else named


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--e", is_flag=True, help="In the three buckets of length of LongBench-E.")
@click.option("--official-faults", is_flag=True, help="0 where the official code fails.")
@output("tasks, categories and averages with n and interval")
def score(folder: Path, e: bool, official_faults: bool, **given: Any) -> None:
    """Score stored LongBench answers without a model.

    FOLDER holds one TASK.jsonl a task, in the official fields: pred, answers, all_classes, length.
    """
    hush(verbose=given["verbose"])
    from skipalign.evaluation.longbench_score import score_folder

    progress = progress_for(quiet=given["quiet"])
    found = score_folder(folder, e=e, official_faults=official_faults, progress=progress)
    (print_json if given["as_json"] else print_longbench)(found)
    following = f"skipalign score {folder} --json > scores.json"
    scored = f"scored {len(found['tasks'])} task(s) of {folder}"
    last_line(scored, following, as_json=given["as_json"])


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page, or a folder for it.")
@click.option("--json-out", type=click.Path(dir_okay=False, path_type=Path), help=STUDY_DOCUMENT)
@click.option("--against", metavar="METHOD", help="Differences against it; normal, if there is.")
@output("a list: a row a method and task")
def report(runs: Sequence[Path], out: Path | None, **given: Any) -> None:
    """Write one page of one or more runs; print their table.

    A run may also be a folder of results alone, such as evaluate's --out: LongBench stands beside
    its published rows, a needle grid in maps, perplexity in curves.
    """
    hush(verbose=given["verbose"])
    from skipalign import report as room

    with progress_for(quiet=given["quiet"]).bar("report", 3) as bar:
        made = str(room.write_report(runs, out, against=given["against"]))
        bar.advance()
        if given["json_out"]:
            kept = room.write_study_document(runs, given["json_out"], against=given["against"])
            made += f" and {kept}"
        bar.advance()
        found = room.table(runs) if given["as_json"] else room.terminal_tables(runs)
        bar.advance()
    if given["as_json"]:
        print_json(found)
    else:
        for table in found:
            console().print(table)
    last_line(f"made {made}", "open it in a browser", as_json=given["as_json"])


@click.command("verify-export")
@click.argument("model")
@click.option("--length", type=click.IntRange(min=4), help="Tokens to read; the model's window.")
@output("differences by loader, whether they agree, the command that serves")
def verify_export(model: str, length: int | None, **given: Any) -> None:
    """Compare what loaders make of MODEL at far positions.

    A RoPE extension that a loader reads otherwise shows at far positions alone. Reads a long text
    as trained, by plain transformers and, where it is installed, by vLLM.
    """
    hush(verbose=given["verbose"])
    from skipalign.serving import verify_export as verify

    found = verify(model, length=length, progress=progress_for(quiet=given["quiet"]))
    if given["as_json"]:
        print_json(found)
    else:
        for name, each in found["loaders"].items():
            verdict = "equal" if each["ok"] else "DIFFERENT"
            click.echo(f"{name:<14}{verdict}, at most {each['largest_difference']} nats a token")
    if not found["ok"]:
        raise ModelError(
            f"{model}: tokens {found['first_compared']} to {found['tokens']} are not read as the "
            f"model was trained, beyond {found['tolerance']} nats; compare rope_parameters in its "
            "config.json with the recipe's rope"
        )
    last_line(f"compared {found['tokens']} tokens", found["serve"][0], as_json=given["as_json"])


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


def _answering(model: str, given: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """Return what evaluates settings with the backend that was chosen, loaded if it is not ours."""
    from skipalign import evaluating

    own: dict[str, tuple[str, ...]] = {
        "http": ("base_url", "tokenizer", "api_key_env", "backend_settings"),
        "vllm": ("backend_settings",),
    }
    allowed = own.get(given["backend"], ())
    for name in own["http"]:
        if given[name] not in (None, ()) and name not in allowed:
            word = "with" if name == "backend_settings" else _dashed(name)
            raise click.UsageError(f"--{word} does not belong to --backend {given['backend']}")
    if given["backend"] == "transformers":
        return functools.partial(evaluating.evaluate_model, model)
    loaded = (_server if given["backend"] == "http" else _vllm)(model, given)
    generator, tokenizer, backend = loaded
    return functools.partial(evaluating.evaluate_generator, generator, tokenizer, backend=backend)


def _server(model: str, given: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    missing = [f"--{_dashed(name)}" for name in ("base_url", "tokenizer") if not given[name]]
    if missing:
        raise click.UsageError(f"--backend http needs {' and '.join(missing)}")
    from skipalign.remote import ServerSettings, load_remote
    from skipalign.schema import read_settings

    fixed = {"base_url": given["base_url"], "model": model}
    settings = read_settings(ServerSettings, _with(given) | fixed, "--backend http")
    loaded = load_remote(settings, given["tokenizer"], api_key_env=given["api_key_env"])
    return *loaded, settings.described | {"tokenizer": given["tokenizer"]}


def _vllm(model: str, given: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    from skipalign.model import load_tokenizer
    from skipalign.vllm_engine import VllmGenerator

    tokenizer, engine = load_tokenizer(model), _with(given)
    described = {"name": "vllm", "model": model, "engine": engine}
    return VllmGenerator(model, tokenizer, engine), tokenizer, described


def _with(given: Mapping[str, Any]) -> dict[str, Any]:
    from skipalign.yaml_tree import overridden

    values: dict[str, Any] = {}
    for each in given["backend_settings"]:
        values = overridden(values, each)
    return values


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
