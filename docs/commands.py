"""Write docs/commands.md from the commands themselves: python docs/commands.py [--check]"""

import re
import sys
import textwrap
from pathlib import Path

import click

from skipalign.cli import cli
from skipalign.commands.options import GIVES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import pages

PAGE = pages.ROOT / "docs/commands.md"
TEXT = """\
# Commands

Made by `python docs/commands.py` from the commands themselves; `skipalign COMMAND --help` says the
same.

## How every command speaks

- **Results** go to stdout, all else to stderr. The last line names what was made and what to type
  next.
- **`--json`** prints one JSON document in ASCII on stdout and nothing else; the last line then goes
  to stderr. Where a command ends with 1 after it has found something (`verify-export`, `doctor`),
  the document is there all the same.
- **Progress**: a stage that takes more than two seconds shows a bar with the time left where stderr
  is a terminal. Elsewhere, as in the log of a job, it writes a line after 2, 4, 8, ... seconds, at
  last every five minutes, and one when it is done. No time is estimated for a JSON array or a data
  set of the hub, whose rows nobody has counted.
- **`--quiet`** leaves all progress out. Errors and the last line stay.

| exit status | what it means |
|---|---|
| 0 | Done. A method that missed its `gate` is a finding (see below). |
| 1 | A problem that the user can mend, in one line: a file, a recipe, a model, the disk. |
| 2 | Wrong usage: no such command or option, or a value that it does not take. |
| 130 | Stopped by Ctrl-C; what is done stays, and the line says how to go on. |

`verify-export` ends with 1 where loaders differ, `doctor` where something required is missing. A
missed gate ends with 0: the page says it in red, the file of `report --json-out` under `gate`. A
fault of the program itself ends with 1 and a traceback.
"""


def page() -> str:
    """Return the whole of docs/commands.md."""
    listed = list(cli.commands.items())
    lines = [
        "",
        "## All commands",
        "",
        "| command | what it does | `--json` gives |",
        "|---|---|---|",
    ]
    for name, command in listed:
        does = command.get_short_help_str(limit=200)
        lines.append(f"| [`{name}`](#{name}) | {_cell(does)} | {_cell(gives(command))} |")
    for name, command in listed:
        lines += ["", f"## {name}", "", *_described(name, command)]
    return TEXT + "\n".join(lines) + "\n"


def gives(command: click.Command) -> str:
    """Return what --json prints, as the help of the option says it."""
    found = [each for each in command.params if each.name == "as_json"]
    told = found[0].help if found and isinstance(found[0], click.Option) else None
    return (told or "").removeprefix(GIVES).removesuffix(".")


def _described(name: str, command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"skipalign {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    told = (command.help or "").replace("\b\n", "").strip().split("\n\n")
    lines = ["```text", " ".join(usage.split()), "```", ""]
    for paragraph in told:
        lines += [*textwrap.wrap(" ".join(paragraph.split()), 98), ""]
    lines += ["| option | meaning |", "|---|---|"]
    for param in command.params:
        record = param.get_help_record(context)
        if record is not None and isinstance(param, click.Option):
            option, meaning = (" ".join(part.split()) for part in record)
            option = re.sub("(INTEGER|FLOAT)( RANGE)?", "N", option)
            lines.append(f"| `{_cell(option)}` | {_cell(meaning)} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def made() -> dict[Path, str]:
    """Return the page by its path."""
    return {PAGE: page()}


if __name__ == "__main__":
    pages.main(made, __doc__)
