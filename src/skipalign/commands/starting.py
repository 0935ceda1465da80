"""init: from a model and data files to a recipe."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skipalign.commands.options import output
from skipalign.errors import RecipeError
from skipalign.terminal import hush, last_line, print_json, progress_for, say
from skipalign.visible import visible

if TYPE_CHECKING:
    from skipalign.commented import Found


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    help="The recipe.",
)
@click.option(
    "--max-position", type=click.IntRange(min=1), metavar="N", help="Positions to reach; 4 windows."
)
@click.option("--gpu", metavar="NAME", help="To train on, as h100; what is here if left out.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Draws rows to look at.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@output("what was found and chosen, notes, the next commands")
def init(model: str, data: Sequence[str], out: Path, **given: Any) -> None:
    """Write a commented recipe for MODEL and DATA.

    Looks at the model's config and at the first rows of the data, tokenises some of them, and says
    beside each choice why. MODEL is a folder, a hub id or tiny; DATA are files, folders or data
    set ids.
    """
    hush(verbose=given["verbose"])
    if out.exists() and not given["force"]:
        raise RecipeError(f"{out}: is there already; give --out another name, or --force")
    from skipalign import starter
    from skipalign.commented import commented
    from skipalign.files import write_text

    found = starter.start(
        model,
        data,
        max_position=given["max_position"],
        gpu=given["gpu"],
        seed=given["seed"],
        progress=progress_for(quiet=given["quiet"]),
    )
    write_text(out, commented(found))
    name = shlex.quote(str(out))
    following = [f"skipalign {word}" for word in (f"preview {name}", f"run {name} --dry-run")]
    following += [f"skipalign plan {name}", f"skipalign run {name}"]
    if given["as_json"]:
        print_json({"recipe": str(out), **starter.described(found), "next": following})
    else:
        _print(found, list(starter.notes(found)))
        for command in following[:1] + following[2:]:
            click.echo(f"  {visible(command)}")
    last_line(f"made {out}", following[1], as_json=given["as_json"])


def _print(found: "Found", notes: Sequence[str]) -> None:
    """Print what was found and chosen, a line each; what is worth knowing goes to stderr."""
    model = found.model
    click.echo(
        visible(
            f"{model.path}: {model.family}, {model.parameters:,} parameters, window "
            f"{model.window:,}, rope_type {model.rope_type}"
        )
    )
    for facts, cut in zip(found.data, found.cuts, strict=True):
        click.echo(visible(f"{facts.path}: {_in_words(facts.quantiles, facts)}"))
        click.echo(
            f"  at {found.choices.max_tokens:,} tokens a row, of {facts.sampled} rows looked at "
            f"{cut['shortened']} are shortened and {cut['dropped']} dropped"
        )
    for note in notes:
        say(f"note: {note}")


def _in_words(quantiles: Mapping[str, int], facts: Any) -> str:
    read = f"{facts.rows:,} rows" if facts.whole else f"over {facts.rows - 1:,} rows"
    lost = sum(facts.rejected.values())
    return (
        f"{read} of the shape {facts.shape}, {lost:,} rejected; tokens {quantiles['0.5']:,} at the "
        f"median, {quantiles['0.95']:,} at 95%, {facts.longest:,} at most; "
        f"{facts.multi_turn} of {facts.sampled} with several turns"
    )
