"""Confirmed models at lengths that their confirmation did not ask: needles and prose.

    python benchmarks/lengths.py runs/confirmation-tiny normal,long,pose,cuts,noise-1 [--jobs 2]

The needle of recipes/confirmation-tiny.yaml at 16 and 64 windows, 25 prompts a length and model,
and its prose at five lengths, the same tokens scored at each; nothing is trained. Every model was
trained with positions to 8,192, where the longest row ends, but for those of methods without skips.
Answers go to a run folder RUN-lengths/asked, which `skipalign report` reads; started again, this
goes on where it stopped. Results go to benchmarks/results/lengths-tiny.json and into the tables of
docs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pages
import readme_tables
import transfer

from skipalign import recipe
from skipalign.origin import sha256_of_files, write_result

RESULT = pages.RESULTS / "lengths-tiny.json"
NEEDLE_LENGTHS = (2048, 8192)
PROSE_LENGTHS = (128, 1024, 2048, 4096, 8192)
TRIALS = 5  # at each of five depths
ARM = "asked"


def main(words: Sequence[str] | None = None) -> None:
    """Ask every model at every length and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("methods")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(words)
    tasks: Any = recipe.load(str(transfer.RECIPE)).tasks
    needle = replace(tasks["needle"], lengths=NEEDLE_LENGTHS, trials=TRIALS)
    asked = {ARM: [needle, replace(tasks["perplexity"], lengths=PROSE_LENGTHS)]}
    out = given.run.with_name(f"{given.run.name}-lengths")
    methods = given.methods.split(",")
    (document,), seeds = transfer.ask_all(given.run, methods, asked, out, given.jobs)
    kept = ("rows", "paired", "reference", "training_window", "tasks")
    write_result(
        RESULT,
        {field: document[field] for field in kept},
        seeds=sorted({transfer.SEED, *seeds}),
        data=sha256_of_files([transfer.RECIPE]),
        exact=("rows", "paired"),
        measured=(),
    )
    pages.write(readme_tables.made())


if __name__ == "__main__":
    main()
