"""Models as they were trained, asked in texts that training never showed.

    python benchmarks/transfer.py runs/confirmation-tiny normal,pose,token,cuts,noise-1 [--jobs 2]

Each arm changes one thing of the needle of recipes/confirmation-tiny.yaml: the sentence, the prose
around it, the names, or what is asked. Every arm becomes a run folder in RUN-transfer/ARM, which
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
from skipalign.evaluation.needle import NeedleSettings
from skipalign.evaluation.ruler_samples import published
from skipalign.evaluation.tasks import task_of
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
    "a thousand names": "keys of two names, 1,024 of them",
    "near keys": "keys of two names, all others share one of them with the needle's",
    "repeated filler": "RULER's five short sentences, over and over",
    "legal filler": "the Apache licence",
    "names in the filler": "after every sentence of the prose one of four surnames, which are the "
    "values of records as well",
    "question first": "the question stands before the text",
    "two needles": "the question names two keys",
    "two places": 'every record is two: "{key} is {other}." and that of {other}',
    "turned round": 'the record is "{value} is {key}."',
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
    """Return what an arm asks: 40 prompts a length and model."""
    settings: Any = replace(recipe.load(str(RECIPE)).tasks["needle"], trials=8)
    half = len(KEYS) // 2
    names: dict[str, Any] = {"keys": (KEYS[:half], KEYS[half:])}
    changes: dict[str, dict[str, Any]] = {
        "another template": {"needle": "The name of {key} is {value}."},
        "a thousand names": names,
        "near keys": {**names, "near_keys": True},
        "question first": {"question_first": True},
        "two needles": {"num_needles": 2, "max_new_tokens": 12},
        "two places": {"link": "{key} is {other}."},
        "turned round": {"needle": "{value} is {key}."},
    }
    if arm in texts:
        return replace(settings, haystack=texts[arm])
    return replace(settings, **changes.get(arm, {}))


def ask(training: Path, out: Path, asked: Sequence[Any]) -> str:
    """Ask one model the tasks of one arm; its training.json goes along, so that pairs are found."""
    place = out / training.parent.name / training.name
    generator, tokenizer = load_generator(training / "model")
    for settings in asked:
        task = task_of(settings)
        task.evaluate(generator, tokenizer, settings, place / "evaluation" / task.name)
    shutil.copy(training / "training.json", place)
    return str(place)


def ask_all(
    run: Path, methods: Sequence[str], arms: Mapping[str, Sequence[Any]], out: Path, jobs: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Ask the models of methods in every arm, in run folders out/ARM.

    Args:
        arms: the settings of each arm's tasks.

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
    asked = {arm: [settings_of(arm, texts)] for arm in ARMS}
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
