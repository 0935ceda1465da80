"""train, run, compare: from samples to models and their report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skipalign.commands.options import (
    DRY_RUN,
    METHOD,
    OVERRIDES,
    RECIPE,
    RUNS_DIR,
    known,
    load,
    names,
    options,
    output,
    print_recipe,
    run_dir_of,
)
from skipalign.errors import RecipeError
from skipalign.terminal import (
    console,
    hush,
    last_line,
    print_json,
    print_seconds,
    progress_for,
    visible,
)

if TYPE_CHECKING:
    from skipalign.recipe import Recipe
    from skipalign.resolved import Training


@click.command()
@RECIPE
@METHOD
@click.option("--seed", type=click.IntRange(min=0), help="Which of the recipe's seeds.")
@RUNS_DIR
@DRY_RUN
@output("training.json: settings, steps, seconds, tokens; the recipe with --dry-run")
def train(recipe: str, overrides: Sequence[str], **given: Any) -> None:
    """Fine-tune one model, or go on where that stopped."""
    hush(verbose=given["verbose"])
    read = load(recipe, overrides)
    trainings = read.trainings()
    if given["dry_run"]:
        return print_recipe(read, given)
    training = _one_training(read, trainings, given)
    from skipalign import distribution, study
    from skipalign.claim import folder_of

    run_dir = run_dir_of(read, given)
    study.join(training, run_dir)
    first = distribution.is_first()
    progress = progress_for(quiet=given["quiet"] or not first)

    def prepare() -> None:
        study.begin(run_dir, read.resolved(), [training], seeds=read.seeds)
        study.prepare([training], run_dir, progress)

    distribution.on_first(prepare)
    order = list(read.methods).index(training.method)
    reach = max(each.max_position for each in trainings)
    outcome = study.train(training, run_dir, progress, order=order, coverage_range=reach)
    if not first:
        return None
    if given["as_json"]:
        print_json(outcome)
    model = folder_of(training, run_dir) / "model"
    lengths = "" if "needle" in read.tasks else " --lengths 1024,4096"
    following = f"skipalign evaluate {model} --task needle{lengths}"
    return last_line(f"made {model}", following, as_json=given["as_json"])


@click.command()
@click.argument("adapter")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="The adapter's base, if it has moved.")
@click.option("--dtype", metavar="NAME", help="Of the weights; that of the base if left out.")
@output("the folder, dtype, how far logits changed")
def merge(adapter: str, out: Path, **given: Any) -> None:
    """Make an adapter and its base one plain model, in OUT.

    It loads in any loader, with the RoPE settings that the adapter was trained with.
    """
    hush(verbose=given["verbose"])
    from skipalign import model
    from skipalign.card import write_merged_card

    progress = progress_for(quiet=given["quiet"])
    found = model.merge(adapter, out, base=given["base"], dtype=given["dtype"], progress=progress)
    write_merged_card(out, adapter)
    if given["as_json"]:
        print_json({"model": str(out), **found})
    else:
        click.echo(
            f"{found['dtype']}; logits at far positions changed by {found['change']:.1e} at most, "
            f"of {found['largest']:.1e}"
        )
    following = f"skipalign evaluate {out} --task needle --lengths 1024,4096"
    return last_line(f"made {out}", following, as_json=given["as_json"])


@click.command()
@click.argument("recipe")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@OVERRIDES
@METHOD
@click.option("--seed", type=click.IntRange(min=0), help="Which of the recipe's seeds.")
@click.option("--epochs", type=click.IntRange(min=1), default=1, help="Each draws positions anew.")
@RUNS_DIR
@output("path, rows, tokens, epochs, range of positions")
def export(recipe: str, out: Path, overrides: Sequence[str], **given: Any) -> None:
    """Write tokens and positions for another trainer.

    OUT ends in .jsonl or .parquet; a README beside it says which trainers need the attention mask.
    """
    hush(verbose=given["verbose"])
    read = load(recipe, overrides)
    training = _one_training(read, read.trainings(), given)
    if not training.train:
        raise RecipeError(f"{training.method} does not train, so it has no data; choose another")
    from skipalign import export as room
    from skipalign import study
    from skipalign.claim import folder_of
    from skipalign.example_file import ExampleFile

    run_dir, progress = run_dir_of(read, given), progress_for(quiet=given["quiet"])
    study.begin(run_dir, read.resolved(), [training], seeds=read.seeds)
    study.prepare([training], run_dir, progress)
    examples = ExampleFile(folder_of(training, run_dir) / "data")
    made = room.export(training, examples, out, num_epochs=given["epochs"], progress=progress)
    if given["as_json"]:
        print_json(made)
    else:
        click.echo(f"{made['rows']:,} rows, {made['tokens']:,} tokens, {made['epochs']} epoch(s)")
    readme = visible(str(out.parent / "README.md"))
    last_line(f"made {out}", f"read {readme}", as_json=given["as_json"])


def _run(recipe: str, overrides: Sequence[str], **given: Any) -> None:
    """Do all of it: prepare, train, evaluate, report.

    Every method with every seed; what is done already is not done again, and what --only leaves
    out stays as it is.
    """
    hush(verbose=given["verbose"])
    read = load(recipe, overrides)
    read = read if given["seeds"] is None else read.with_seeds(given["seeds"])
    methods = read.chosen(given["only"] or tuple(read.methods))
    trainings = read.trainings()
    if given["dry_run"]:
        return _print_plan(read, [each for each in trainings if each.method in methods], given)
    from skipalign import report as report_room
    from skipalign import study

    run_dir, progress = run_dir_of(read, given), progress_for(quiet=given["quiet"])
    page = study.run(
        trainings,
        run_dir,
        progress,
        recipe_text=read.resolved(),
        only=methods,
        jobs=given["jobs"],
    )
    seconds = study.seconds_by_stage(trainings, run_dir)
    if given["as_json"]:
        rows = report_room.table([run_dir])
        print_json({"report": str(page), "seconds": seconds, "rows": rows})
    else:
        for table in report_room.terminal_tables([run_dir]):
            console().print(table)
        print_seconds(seconds)
    return last_line(f"made {page}", "open it in a browser", as_json=given["as_json"])


RUN = options(
    RECIPE,
    click.option("--only", metavar="NAME,...", callback=names, help="These methods alone."),
    click.option(
        "--seeds",
        metavar="N",
        type=click.IntRange(min=1),
        help="The recipe's first N seeds; 0 to N-1 where it has fewer.",
    ),
    click.option(
        "--jobs",
        metavar="N",
        type=click.IntRange(min=1),
        default=1,
        help="Trainings at once, each with its share of threads and one GPU of several.",
    ),
    RUNS_DIR,
    click.option("--dry-run", is_flag=True, help="Check all that needs no training; list it."),
    output("page, seconds by stage, a row a method and task; with --dry-run the trainings"),
)


run = click.command("run")(RUN(_run))
compare = click.command("compare", short_help="The same as run, for recipes with methods.")(
    RUN(_run)
)


@click.command()
@RECIPE
@click.option("--gpu", default="h100", show_default=True, help="h100, h200, a100, l40s, rtx4090.")
@click.option(
    "--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many at once."
)
@click.option(
    "--shared", is_flag=True, help="Each holds a part of weights and optimizer (FSDP2, ZeRO 3)."
)
@click.option(
    "--mfu",
    type=float,
    help="Share of the GPU's peak that the model's own FLOPs reach; 0.4, or 0.3 where layers are "
    "computed twice.",
)
@output("parameters, memory by part, FLOPs, hours of each method")
def plan(recipe: str, overrides: Sequence[str], as_json: bool, **given: Any) -> None:
    """Say what training will cost: FLOPs, memory, GPU hours.

    Beside each method that skips stands training on rows as long as its positions reach. Nothing
    is loaded, trained or asked of a network.
    """
    hush(verbose=given["verbose"])
    read = load(recipe, overrides)
    from skipalign import budget

    asked = {name: given[name] for name in ("gpu", "gpus", "shared", "mfu")}
    found = budget.estimate(read.trainings(), **asked)
    if as_json:
        return print_json(found)
    click.echo(visible("\n".join(budget.lines(found))))
    return last_line(f"planned {read.name}", f"skipalign run {recipe} --dry-run", as_json=False)


def _one_training(
    recipe: "Recipe", trainings: Sequence["Training"], given: Mapping[str, Any]
) -> "Training":
    """Return the training that --method and --seed choose; one must be left."""
    method, seed = given["method"], given["seed"]
    if method is not None:
        known(method, recipe.methods, "method")
    elif len(recipe.methods) > 1:
        names = ", ".join(recipe.methods)
        raise click.UsageError(f"the recipe lists methods; give --method, one of {names}")
    found = [each for each in trainings if method in (None, each.method)]
    seeds = ", ".join(str(each.seed) for each in found)
    if seed is None and len(found) > 1:
        raise click.UsageError(f"the recipe has several seeds; give --seed, one of {seeds}")
    found = [each for each in found if seed in (None, each.seed)]
    if not found:
        raise RecipeError(f"no seed {seed}; {method or 'the recipe'} has {seeds}")
    return found[0]


def _print_plan(
    recipe: "Recipe", trainings: Sequence["Training"], given: Mapping[str, Any]
) -> None:
    """Print the resolved recipe, then its trainings as comments: all of it reads as a recipe."""
    from skipalign import plan

    found = plan.examine(trainings)
    if given["as_json"]:
        from skipalign.yaml_tree import read_yaml

        return print_json({"recipe": read_yaml(recipe.resolved().encode(), recipe.where), **found})
    text = recipe.resolved() + "".join(f"# {line}\n" for line in plan.lines(found))
    return click.echo(visible(text), nl=False)
