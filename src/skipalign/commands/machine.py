"""doctor: what this machine has."""

import click

from skipalign.commands.options import output
from skipalign.errors import SkipalignError
from skipalign.terminal import console, hush, last_line, print_json, progress_for


@click.command()
@output("versions, devices, probes, what is missing")
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show versions, devices, what is missing and how to get it."""
    hush(verbose=verbose)
    from skipalign import doctor as room

    found = room.examine(progress_for(quiet=quiet))
    if as_json:
        print_json(found)
    else:
        room.show(found, console())
    if not found["ok"]:
        raise SkipalignError("something required is missing; the lines that say so name the cure")
    last_line("all that is required is here", "skipalign run tiny", as_json=as_json)
