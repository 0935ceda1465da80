"""The stretch probe: a short text whose question sits at far positions.

A jump in the positions between passage and question puts the needle at a given distance at the
cost of a short forward pass. No key is added, so a miss is position failure alone; the needle
task shows it together with what more text does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from skipalign.errors import RecipeError
from skipalign.evaluation import SCORES, graded, scores, write_results
from skipalign.evaluation.prompts import Prompt, PromptMaker
from skipalign.evaluation.records import Hidden, RetrievalSettings
from skipalign.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Generator

TASK = "stretch"
# Parts its draws from those of the needle task, which begin with the same seed.
_STREAM = 0x57E7C
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class StretchSettings(RetrievalSettings):
    """The distances, and what `RetrievalSettings` says of the texts.

    Args:
        distances: from the needle's first token to the question's first, in positions; each at
            least `context_length`. Natural positions are always measured too.
        context_length: real tokens of the prompt, template and question included.
        trials: prompts, the same for every distance; each at a random depth.
    """

    distances: tuple[int, ...]
    context_length: int
    trials: int = 40

    def __post_init__(self) -> None:
        """Raises RecipeError for distances that a prompt cannot be stretched to."""
        super().__post_init__()
        short = [distance for distance in self.distances if distance < self.context_length]
        if not self.distances or short or len(set(self.distances)) < len(self.distances):
            raise RecipeError(
                f"distances are {list(self.distances)} for a context_length of "
                f"{self.context_length}; give unlike numbers of positions, none under "
                "context_length (natural positions are measured anyway)"
            )
        if self.trials < 1:
            raise RecipeError(f"trials are {self.trials}; at least one is required")
        self.refuse_too_few_names(self.context_length)


def stretched(prompt: Prompt, distance: int | None) -> Int[np.ndarray, " T"]:
    """Return positions that jump before the question, so that it is `distance` from the needle.

        tokens     <s> It was | The number is | in May | Which number?
        positions   0   1   2    3     4    5    6   7    43    44        (distance = 40)

    None gives natural positions. The question and all after it, the answer too, move by one jump.
    """
    positions = np.arange(len(prompt.ids))
    if distance is not None:
        jump = distance - (prompt.question_start - prompt.needle_start)
        positions[prompt.question_start :] += jump
    return positions


def check_stretch(tokenizer: "PreTrainedTokenizerBase", settings: StretchSettings) -> None:
    """Build the first prompt.

    Raises:
        SkipalignError: see `PromptMaker`.
    """
    _trial(PromptMaker(tokenizer, settings), settings, 0)


def evaluate_stretch(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: StretchSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every trial at every distance; write stretch.json, stretch.csv and stretch.png.

    A cell is {distance, shifted, n, correct, mean, low, high, ..., realised_distances, trials}.
    The first one has natural positions: `shifted` is false and its distance the mean over trials.

    Returns:
        the document in stretch.json.

    Raises:
        SkipalignError: see `PromptMaker`.
    """
    maker = PromptMaker(tokenizer, settings)
    trials = [_trial(maker, settings, trial) for trial in range(settings.trials)]
    distances = (None, *sorted(settings.distances))
    cells: list[dict[str, Any]] = []
    with progress.bar("stretch", total=len(trials) * len(distances)) as bar:
        for distance in distances:
            cells.append(_cell(generator, trials, distance, settings.max_new_tokens))
            bar.advance(len(trials))
    document = {
        "task": TASK,
        "settings": {**asdict(settings), "haystack_sha256": maker.haystack_sha256},
        "prompts": maker.described(),
        "cells": cells,
    }
    columns = ("distance", "shifted", *SCORES)
    return write_results(Path(out), document, columns, _draw)


def _trial(maker: PromptMaker, settings: StretchSettings, trial: int) -> tuple[Prompt, Hidden]:
    rng = np.random.default_rng([settings.seed, _STREAM, trial])
    hidden = settings.draw(rng, settings.context_length)
    return maker.make(settings.context_length, rng.random(), hidden, rng), hidden


def _cell(
    generator: "Generator",
    trials: Sequence[tuple[Prompt, Hidden]],
    distance: int | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    answers = generator.generate(
        [prompt.ids.tolist() for prompt, _ in trials],
        max_new_tokens=max_new_tokens,
        position_ids=[stretched(prompt, distance) for prompt, _ in trials],
    )
    natural = [prompt.question_start - prompt.needle_start for prompt, _ in trials]
    realised = natural if distance is None else [distance] * len(trials)
    rows = [
        graded(hidden.key, hidden.values, answer.text)
        for (_, hidden), answer in zip(trials, answers, strict=True)
    ]
    return {
        "distance": round(float(np.mean(realised))),
        "shifted": distance is not None,
        **scores(rows),
        "realised_distances": realised,
        "trials": rows,
    }


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy by distance with its interval as a band."""
    from matplotlib.figure import Figure

    cells = document["cells"]
    distances = [cell["distance"] for cell in cells]
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    lows, means, highs = ([cell[name] for cell in cells] for name in ("low", "mean", "high"))
    axes.fill_between(distances, lows, highs, alpha=0.25, linewidth=0, label="95% interval")
    axes.plot(distances, means, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(distances, [f"{distance:,}" for distance in distances], rotation=45)
    axes.set_xticks([], minor=True)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    axes.set_xlabel("distance from needle to question (positions; the first is natural)")
    axes.set_ylabel("accuracy (share of trials)")
    real = document["settings"]["context_length"]
    axes.set_title(f"Stretch probe: {real:,} real tokens, {cells[0]['n']} trials a distance")
    axes.legend(loc="lower left")
    figure.savefig(path, format="png", dpi=150)
