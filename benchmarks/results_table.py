"""Write docs/results.md from the results: python benchmarks/results_table.py [--check]

One row for every file of benchmarks/results: the command that makes it, and what its figures come
from, as its `environment` says it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pages

PAGE = pages.ROOT / "docs/results.md"
HEADS = ("file", "command", "seeds", "commit", "came with", "data", "machine")
HEADS += ("repeats", "does not repeat")
NOT_RECORDED, TO_THE_BIT, TOLERANCE = "not recorded", "to the bit", "within"  # as origin.py says
TEXT = f"""\
# Where every figure comes from

Made by `python benchmarks/results_table.py` from the files of
[benchmarks/results](../benchmarks/results), each of which carries all of this under `environment`:
commit, command, packages, machine, seeds, the sha256 of its data, and what of it another run gives
again.

On a CPU scores, counts and losses repeat to the bit, with the packages of `environment`, as many
threads and the same kind of processor. On a GPU they repeat within their intervals, because sums
run in another order. Times and what follows from them are measured and repeat nowhere.

A file made before a field was kept has `{NOT_RECORDED}` in it: three name no processor. "came with"
is the commit that brought the figures into the repository. A `note` in the file says what else is
known. `skipalign report RUN --json-out FILE` writes the files of commands that make a run.

"""


def row(name: str, block: Mapping[str, Any]) -> list[str]:
    """Return what is said of one file."""
    exact: Mapping[str, str] = block["exact"]
    within = any(kind.startswith(TOLERANCE) for kind in exact.values())
    again = [field for field, kind in exact.items() if kind.startswith((TO_THE_BIT, TOLERANCE))]
    moved = [field for field in exact if field not in again]
    return [
        f"[{name}](../benchmarks/results/{name})",
        f"`{block['command']}`",
        ", ".join(map(str, block["seeds"])) or "none",
        commit(block["commit"]),
        commit(block.get("came_with", "itself")),
        data(block["data"]),
        machine(block),
        f"{', '.join(again)}: {'within tolerance' if within else 'to the bit'}" if again else "-",
        ", ".join(moved) or "-",
    ]


def commit(text: str) -> str:
    """Return a commit in its short form."""
    digits, space, more = text.partition(" ")
    return f"{digits[:7]}{space}{more}" if len(digits) == 40 else text


def data(files: Mapping[str, str] | str) -> str:
    """Return names of files, with the first digits of their digests."""
    if isinstance(files, str):
        return files
    if len(files) > 3:
        return f"{len(files)} files"
    return ", ".join(f"{name} {digest[:8]}" for name, digest in files.items()) or "no file"


def machine(block: Mapping[str, Any]) -> str:
    """Return what the figures were made on."""
    gpus = block["gpus"]
    if gpus:
        return f"{len(gpus)} {gpus[0]}"
    cpu = block["cpu"]
    named = block["machine"] if cpu == NOT_RECORDED else f"{cpu}, {block['machine']}"
    return f"{named}, {block['torch_threads']} of {block['cpus']} cores"


def blocks(document: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the block of a file, or of each run where it holds several."""
    found = document["environment"]
    return [found] if "commit" in found else found.values()


def page() -> str:
    """Return the whole page."""
    rows = [HEADS, ["---"] * len(HEADS)]
    for path in sorted(pages.RESULTS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        rows += [row(path.name, block) for block in blocks(document)]
    return TEXT + "".join(f"| {' | '.join(each)} |\n" for each in rows)


def made() -> dict[Path, str]:
    """Return the page by its path."""
    return {PAGE: page()}


if __name__ == "__main__":
    pages.main(made, __doc__)
