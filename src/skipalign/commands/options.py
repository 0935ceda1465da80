"""What several commands share: their options, and how these choose."""

import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skipalign.errors import RecipeError
from skipalign.terminal import print_json
from skipalign.visible import visible

if TYPE_CHECKING:
    from skipalign.recipe import Recipe
    from skipalign.resolved import Training

Command = Callable[..., Any]


def options(*options: Command) -> Callable[[Command], Command]:
    """Return one decorator for several options, in the order of the help."""

    def decorate(command: Command) -> Command:
        return functools.reduce(lambda inner, option: option(inner), reversed(options), command)

    return decorate


def _override(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is no KEY=VALUE, such as trainer.max_steps=50")
    return values


def numbers(kind: type[int] | type[float]) -> Command:
    """Return the callback of an option that takes numbers with commas between."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else tuple(kind(each) for each in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r}: give numbers with commas between") from None

    return parse


def names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Return the names of an option that takes them with commas between."""
    return None if value is None else tuple(each.strip() for each in value.split(","))


OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", callback=_override)
RECIPE = options(click.argument("recipe"), OVERRIDES)
RUNS_DIR = click.option(
    "--runs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where run folders lie; this run's is RUNS_DIR/NAME.",
)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the resolved recipe and do nothing.")
METHOD = click.option(
    "--method", metavar="NAME", help="Which method, where a recipe lists several."
)
GIVES = "Print JSON: "  # what stands behind it in the help is docs/commands.md's third column


def _quiet(_: click.Context, __: click.Parameter, value: bool) -> bool:
    """Let downloads from the hub draw their own bars on a terminal, unless none are wanted."""
    wanted = not value and sys.stderr.isatty()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if wanted else "1")
    return value


def output(gives: str) -> Command:
    """Return the options of every command; `gives` says what --json prints."""
    return options(
        click.option("--json", "as_json", is_flag=True, help=f"{GIVES}{gives}."),
        click.option("-q", "--quiet", is_flag=True, callback=_quiet, help="No progress."),
        click.option("-v", "--verbose", is_flag=True, help="Show transformers' own logs."),
    )


def load(recipe: str, overrides: Sequence[str] = ()) -> "Recipe":
    """Read a recipe with its overrides; nothing heavy is imported before."""
    from skipalign.recipe import load

    return load(recipe, overrides)


def known(found: str, known: Collection[str], what: str) -> str:
    """Return a name that the recipe has.

    Raises:
        RecipeError: it has no such thing.
    """
    if found in known:
        return found
    raise RecipeError(f"no {what} {found!r}; the recipe has {', '.join(known)}")


def run_dir_of(recipe: "Recipe", given: Mapping[str, Any]) -> Path:
    """Return where the run of a recipe lies."""
    return Path(given["runs_dir"]) / recipe.name


def choosing(recipe: "Recipe", training: "Training") -> str:
    """Return the options that `train` needs for this training."""
    method = f" --method {training.method}" if len(recipe.methods) > 1 else ""
    return method + (f" --seed {training.seed}" if len(recipe.seeds) > 1 else "")


def print_recipe(recipe: "Recipe", given: Mapping[str, Any]) -> None:
    """Print the resolved recipe, as YAML or as JSON."""
    text = recipe.resolved()
    if given["as_json"]:
        from skipalign.yaml_tree import read_yaml

        print_json(read_yaml(text.encode(), recipe.where))
    else:
        click.echo(visible(text), nl=False)
