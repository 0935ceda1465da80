"""preview, prepare: from rows of a file to samples."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skipalign.commands.options import (
    DRY_RUN,
    METHOD,
    RECIPE,
    RUNS_DIR,
    choosing,
    known,
    load,
    output,
    print_recipe,
    run_dir_of,
)
from skipalign.errors import RecipeError
from skipalign.terminal import console, hush, last_line, print_accounting, print_json, progress_for

if TYPE_CHECKING:
    from skipalign.prepare import Source
    from skipalign.recipe import Recipe
    from skipalign.sample import Sample
    from skipalign.schema import Settings


@click.command()
@RECIPE
@click.option("--index", type=click.IntRange(min=0), default=0, help="Which sample, from 0.")
@click.option("--source", metavar="NAME", help="Count samples in this source of the data alone.")
@METHOD
@click.option("--seed", type=click.IntRange(min=0), help="Of the training; the recipe's first.")
@click.option("--epoch", type=click.IntRange(min=0), default=0, help="Draws the positions anew.")
@click.option("--full", is_flag=True, help="Show long texts whole.")
@click.option(
    "--samples", type=click.IntRange(1, 100), default=1, help="How many, from --index on."
)
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page instead."
)
@output("the sample: tokens, segments, positions, skips, key bias")
def preview(recipe: str, overrides: Sequence[str], **given: Any) -> None:
    """Show samples: what is trained, where positions skip.

    Without --method it is the recipe's first method that skips.
    """
    if given["as_json"] and (given["html"] or given["samples"] > 1):
        raise click.UsageError("--json prints one sample; leave out --samples and --html")
    hush(verbose=given["verbose"])
    read = load(recipe, overrides)
    method = known(given["method"] or _method_that_skips(read), read.methods, "method")
    samples, tokenizer = _drawn(read, method, given)
    from skipalign.preview import show
    from skipalign.preview_page import write_preview
    from skipalign.sample import describe

    made = f"showed {_numbers(samples)}"
    if given["html"]:
        write_preview(samples, tokenizer, given["html"], method=method, full=given["full"])
        made = f"made {given['html']} of {_numbers(samples)}"
    elif given["as_json"]:
        print_json({"method": method, **describe(samples[0], tokenizer)})
    else:
        for sample in samples:
            show(sample, tokenizer, console(), method=method, full=given["full"])
    given_words = shlex.join([recipe, *overrides])
    following = f"skipalign preview {given_words} --index {samples[-1].index + 1}"
    last_line(made, following, as_json=given["as_json"])


def _drawn(read: "Recipe", method: str, given: Mapping[str, Any]) -> "tuple[list[Sample], Any]":
    from skipalign.model import load_tokenizer
    from skipalign.sample import draw_sample

    settings = read.methods[method]
    seed = read.seeds[0] if given["seed"] is None else given["seed"]
    base = settings.base.of(seed)
    tokenizer = load_tokenizer(base.path, revision=base.revision)
    sources = _sources(settings, given["source"])
    samples = [
        draw_sample(
            sources,
            settings.strategies,
            tokenizer,
            index=index,
            seed=seed,
            epoch=given["epoch"],
            key_bias=settings.key_bias,
            template_kwargs=settings.template_kwargs,
        )
        for index in range(given["index"], given["index"] + given["samples"])
    ]
    return samples, tokenizer


def _numbers(samples: "Sequence[Sample]") -> str:
    first, last = samples[0].index, samples[-1].index
    return f"sample {first}" if first == last else f"samples {first} to {last}"


@click.command()
@RECIPE
@RUNS_DIR
@DRY_RUN
@output("rows read, used, rejected, dropped and why; the recipe with --dry-run")
def prepare(recipe: str, overrides: Sequence[str], **given: Any) -> None:
    """Tokenize conversations; count what was dropped and why."""
    hush(verbose=given["verbose"])
    read = load(recipe, overrides)
    trainings = read.trainings()
    if given["dry_run"]:
        return print_recipe(read, given)
    trained = [training for training in trainings if training.train]
    if not trained:
        raise RecipeError(f"{recipe}: no method trains, so no data is read; set train: true")
    from skipalign import study
    from skipalign.claim import folder_of

    run_dir = run_dir_of(read, given)
    study.begin(run_dir, read.resolved(), trainings, seeds=read.seeds)
    accounting = study.prepare(trainings, run_dir, progress_for(quiet=given["quiet"]))
    (print_json if given["as_json"] else print_accounting)(accounting)
    made = folder_of(trained[0], run_dir) / "data"
    given_words = shlex.join([recipe, *overrides])  # without them it would be another training
    following = f"skipalign train {given_words}{choosing(read, trained[0])}"
    return last_line(f"made {made}", following, as_json=given["as_json"])


def _method_that_skips(recipe: "Recipe") -> str:
    """Return the first method with skips: there is more to see in it than in the others."""
    for name, settings in recipe.methods.items():
        skips = any(hasattr(strategy, "max_position") for strategy in settings.strategies.values())
        if settings.train and skips:
            return name
    return next(iter(recipe.methods))


def _sources(settings: "Settings", name: str | None) -> "tuple[Source, ...]":
    from skipalign.tiny import make

    sources = tuple(replace(each, path=make.conversations(each.path)) for each in settings.sources)
    if name is None:
        return sources
    names = [source.name for source in sources]
    return (sources[names.index(known(name, names, "source"))],)
