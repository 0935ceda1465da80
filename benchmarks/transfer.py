"""Models as they were trained, asked in texts that training never showed.

    python benchmarks/transfer.py runs/confirmation-tiny normal,pose,token,cuts,noise-1 [--jobs 2]

Each arm changes one thing of the needle of recipes/confirmation-tiny.yaml: the sentence, the prose
around it, or how alike the keys are. Every arm becomes a run folder in RUN-transfer/ARM, which
`skipalign report` reads; started again, this goes on where it stopped. Results go to
benchmarks/results/transfer-tiny.json: a row for each arm, method and length, and differences
against PoSE pair by pair, and transfer_table.py writes them into docs/confirmation.md.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pages
import transfer_table

from skipalign import recipe
from skipalign.evaluating import load_generator
from skipalign.evaluation.haystack import sentence_edges
from skipalign.evaluation.needle import NeedleSettings, evaluate_needle
from skipalign.evaluation.ruler_samples import published
from skipalign.origin import sha256_of_files, write_result
from skipalign.report import study_document
from skipalign.tiny import PROSE
from skipalign.tiny.corpus import KEYS, VALUES, read_prose
from skipalign.workers import finished, shared_threads

RECIPE = pages.ROOT / "recipes/confirmation-tiny.yaml"
RESULT = pages.RESULTS / "transfer-tiny.json"
AGAINST = "pose"
SEED = 0
ARMS = {
    "as trained": "the needle of the confirmation",
    "another template": 'the record is "The name of {key} is {value}."',
    "near keys": "keys of two names, all others share one of them with the needle's",
    "repeated filler": "RULER's five short sentences, over and over",
    "legal filler": "the Apache licence",
    "names in the filler": "after every sentence of the prose one of four surnames, which are the "
    "values of records as well",
}


def haystacks(folder: Path) -> dict[str, str]:
    """Write the texts of the arms that have their own; return their paths by arm."""
    rng = np.random.default_rng(SEED)
    prose = read_prose(Path(str(PROSE)))[:200_000]
    edges = sentence_edges(prose)
    sentences = [prose[start:stop].strip() for start, stop in pairwise(edges)]
    named = " ".join(
        f"{sentence} {', '.join(rng.choice(VALUES, 3, replace=False))} and {rng.choice(VALUES)}."
        for sentence in sentences
    )
    texts = {
        "repeated filler": published()["noise"],
        "legal filler": (pages.ROOT / "LICENSE").read_text(encoding="utf-8"),
        "names in the filler": named,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for arm, text in texts.items():
        (folder / f"{arm}.txt").write_text(text, encoding="utf-8")
    return {arm: str(folder / f"{arm}.txt") for arm in texts}


def settings_of(arm: str, texts: dict[str, str]) -> NeedleSettings:
    """Return what an arm asks: 20 prompts a length and model."""
    settings: Any = replace(recipe.load(str(RECIPE)).tasks["needle"], trials=4)
    if arm in texts:
        return replace(settings, haystack=texts[arm])
    if arm == "another template":
        return replace(settings, needle="The name of {key} is {value}.")
    if arm == "near keys":
        half = len(KEYS) // 2
        return replace(settings, keys=(KEYS[:half], KEYS[half:]), near_keys=True)
    return settings


def ask(training: Path, out: Path, settings: NeedleSettings) -> str:
    """Ask one model in one arm; its training.json goes along, so that pairs are found."""
    place = out / training.parent.name / training.name
    generator, tokenizer = load_generator(training / "model")
    evaluate_needle(generator, tokenizer, settings, place / "evaluation" / "needle")
    shutil.copy(training / "training.json", place)
    return str(place)


def ask_all(
    run: Path, methods: Sequence[str], arms: Mapping[str, NeedleSettings], out: Path, jobs: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Ask the models of methods in every arm, in run folders out/ARM.

    Returns:
        The document of each arm, as `skipalign report` has it, and the seeds of the trainings.
    """
    trainings = [path for method in methods for path in sorted((run / method).glob("seed-*"))]
    work = [(path, out / arm, each) for arm, each in arms.items() for path in trainings]
    with shared_threads(jobs):
        for count, place in enumerate(finished(ask, work, jobs), 1):
            print(f"{count} of {len(work)}: {place}", flush=True)
    for arm in arms:
        shutil.copy(run / "recipe.yaml", out / arm)
    documents = [study_document([out / arm], against=AGAINST) for arm in arms]
    return documents, sorted({int(path.name.removeprefix("seed-")) for path in trainings})


def main(words: Sequence[str] | None = None) -> None:
    """Ask every model in every arm and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("methods")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(words)
    out = given.run.with_name(f"{given.run.name}-transfer")
    texts = haystacks(out / "haystacks")
    asked = {arm: settings_of(arm, texts) for arm in ARMS}
    documents, seeds = ask_all(given.run, given.methods.split(","), asked, out, given.jobs)
    found = list(zip(ARMS, documents, strict=True))
    write_result(
        RESULT,
        {
            "arms": ARMS,
            "rows": [{"arm": arm, **row} for arm, each in found for row in each["rows"]],
            "paired": [{"arm": arm, **row} for arm, each in found for row in each["paired"]],
            "reference": AGAINST,
        },
        seeds=sorted({SEED, *seeds}),
        data=sha256_of_files([out / "haystacks"]),
        exact=("rows", "paired"),
        measured=(),
    )
    pages.write(transfer_table.made())


if __name__ == "__main__":
    main()
