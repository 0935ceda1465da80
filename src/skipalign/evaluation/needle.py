"""Needle in a haystack: find one sentence in a long text, by context length and depth.

A miss has two causes that this task shows together: positions that training never saw, and more
text that competes for attention. `stretch` shows the first alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int

from skipalign.errors import RecipeError
from skipalign.evaluation import SCORES, graded, scores, write_results
from skipalign.evaluation.metrics import share, share_of_groups
from skipalign.evaluation.nested import NestedText
from skipalign.evaluation.prompts import PromptMaker
from skipalign.evaluation.records import RetrievalSettings
from skipalign.evaluation.trial_log import TrialLog
from skipalign.files import SCHEMA_VERSION
from skipalign.generation import Completion, Generator, answers_of, tokens_at_once
from skipalign.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.transformers_engine import TransformersGenerator

TASK = "needle"
TRIALS = "needle.trials.jsonl"
# Prompts that a run with reuse also computes the plain way, and the stream that chooses them.
_NUM_CHECKED, _CHECKS = 4, 0xC4EC
# Below it white is the more readable on the map's colour, above it black.
_MIDDLE_OF_CIVIDIS = 0.47
_SILENT = Silent()

Place = tuple[int, float, int]  # context length, depth, trial
_Cell = tuple[int, float]


@dataclass(frozen=True, kw_only=True)
class NeedleSettings(RetrievalSettings):
    """The grid, and what `RetrievalSettings` says of the texts.

    Args:
        lengths: tokens of the whole prompt, template and question included, answer not.
        depths: fractions of the passage, or how many to spread evenly from 0 to 1.
        trials: prompts a cell, each with a key, a value and a passage of its own; or {length:
            trials}.
        question_first: the question stands before the passage, so that the model knows while it
            reads what it will be asked.
        nested: the prompts of a trial are beginnings of one text, with the needle at places that
            they share as far as `depths` allow, here fractions of the whole prompt (see `nested`).
            None is true wherever the other settings allow it. Cells are then not independent of
            each other, and at short lengths some are the same: intervals over several depths are
            drawn over texts. False gives every prompt a text of its own.
        reuse: with `nested`, compute what prompts share once, where that is exact for the model;
            the results say what it saved, and compare a few prompts with the plain way.
    """

    lengths: tuple[int, ...]
    depths: int | tuple[float, ...] = 11
    trials: int | dict[int, int] = 5
    question_first: bool = False
    nested: bool | None = None
    reuse: bool = True

    def __post_init__(self) -> None:
        """Raises RecipeError for a grid without cells or with cells that cannot be."""
        super().__post_init__()
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise RecipeError(
                f"lengths are {list(self.lengths)}; give unlike numbers of tokens, at least one"
            )
        self.refuse_too_few_names(max(self.lengths))
        depths = self.all_depths
        if not depths or min(depths) < 0 or max(depths) > 1 or len(set(depths)) < len(depths):
            raise RecipeError(
                f"depths are {self.depths}; give how many, or unlike fractions from 0 to 1"
            )
        for length in self.lengths:
            if self.num_trials(length) < 1:
                raise RecipeError(
                    f"trials for length {length} are {self.num_trials(length)}; every length "
                    "needs at least one - give one number for all, or one for each length"
                )
        self._take_nesting()

    def _take_nesting(self) -> None:
        """Find out whether prompts can be nested; refuse settings where they cannot."""
        reasons = {
            "distractors": "one number for all lengths cannot be nested; give tokens_per_record",
            "near_keys": "distractors would change with the needle's place; leave it out",
            "link": "links of the longest prompt would lie beyond a shorter one; leave it out",
            "num_needles": "all but one would lie beyond a shorter prompt; ask for one",
            "question_first": "prompts that begin with their question are not alike; leave it out",
        }
        against = {
            name: reason
            for name, reason in reasons.items()
            if getattr(self, name) != getattr(NeedleSettings, name)
        }
        if self.nested and against:
            name, reason = next(iter(against.items()))
            raise RecipeError(f"nested is true and {name} is {getattr(self, name)!r}: {reason}")
        if self.nested is None:
            object.__setattr__(self, "nested", not against)

    @property
    def all_depths(self) -> tuple[float, ...]:
        """The depths as fractions."""
        if not isinstance(self.depths, int):
            return tuple(float(depth) for depth in self.depths)
        if self.depths == 1:
            return (0.5,)
        return tuple(round(float(depth), 6) for depth in np.linspace(0, 1, max(0, self.depths)))

    def num_trials(self, length: int) -> int:
        """Return the trials of each cell at `length`."""
        return self.trials if isinstance(self.trials, int) else self.trials.get(length, 0)


@dataclass(frozen=True, slots=True, eq=False)
class NeedlePrompt:
    """One trial: what is asked, the right answer, and where the needle really lies."""

    context_length: int
    depth: float
    trial: int
    key: str
    values: tuple[str, ...]
    ids: Int[np.ndarray, " T"]
    realised_depth: float

    @property
    def place(self) -> Place:
        """Where in the grid."""
        return self.context_length, self.depth, self.trial

    @property
    def value(self) -> str:
        """The right answer; several values with commas between."""
        return ", ".join(self.values)


class PromptGrid:
    """Builds every prompt of a grid: the same for all models that share a tokenizer.

    Raises:
        SkipalignError: see `PromptMaker`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: NeedleSettings) -> None:
        self.settings = settings
        self.maker = PromptMaker(tokenizer, settings, question_first=settings.question_first)
        self._texts: dict[int, NestedText] = {}

    def places(self) -> list[Place]:
        """Return (length, depth, trial) of every prompt, in the order of the grid."""
        return [
            (length, depth, trial)
            for length, depth in _grid(self.settings)
            for trial in range(self.settings.num_trials(length))
        ]

    def prompt(self, place: Place) -> NeedlePrompt:
        """Build a prompt: a pure function of the seed and its place.

        Raises:
            RecipeError: no room for its records.
        """
        length, depth, trial = place
        if self.settings.nested:
            if trial not in self._texts:
                self._texts[trial] = NestedText(self.maker, trial, max(self.settings.lengths))
            prompt, hidden = self._texts[trial].prompt(length, depth)
        else:
            seeds = [self.settings.seed, length, self.settings.all_depths.index(depth), trial]
            rng = np.random.default_rng(seeds)
            hidden = self.settings.draw(rng, length)
            prompt = self.maker.make(length, depth, hidden, rng)
        realised = prompt.needle_start / len(prompt.ids)
        return NeedlePrompt(*place, hidden.key, hidden.values, prompt.ids, realised)


def build_prompts(
    tokenizer: "PreTrainedTokenizerBase", settings: NeedleSettings
) -> list[NeedlePrompt]:
    """Build every prompt of the grid.

    Raises:
        SkipalignError: see `PromptMaker`.
    """
    grid = PromptGrid(tokenizer, settings)
    return [grid.prompt(place) for place in grid.places()]


def check_needle(tokenizer: "PreTrainedTokenizerBase", settings: NeedleSettings) -> None:
    """Build the shortest prompts, those with the least room.

    Raises:
        SkipalignError: see `PromptMaker`.
    """
    grid = PromptGrid(tokenizer, settings)
    for depth in settings.all_depths:
        grid.prompt((min(settings.lengths), depth, 0))


def evaluate_needle(
    generator: Generator,
    tokenizer: "PreTrainedTokenizerBase",
    settings: NeedleSettings,
    out: Path,
    progress: Progress = _SILENT,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Ask every trial of the grid and write needle.json, needle.csv and needle.png into `out`.

    Every answer is kept in needle.trials.jsonl: started again after a kill, this goes on where it
    stopped.

    Args:
        overwrite: throw away what `out` holds of another model or of other settings.

    Returns:
        the document in needle.json.

    Raises:
        RunError: `out` holds trials of another model or of other settings.
        SkipalignError: see `PromptMaker`.
    """
    grid = PromptGrid(tokenizer, settings)
    document: dict[str, Any] = {
        "task": TASK,
        "settings": {**asdict(settings), "haystack_sha256": grid.maker.haystack_sha256},
        "prompts": grid.maker.described(),
    }
    header = {"schema_version": SCHEMA_VERSION, **document, "model": generator.identity}
    key = ("context_length", "depth", "trial")
    plain = json.loads(json.dumps(header))  # as the log gives it back: lists, and keys as text
    log = TrialLog(Path(out) / TRIALS, plain, key, overwrite=overwrite)
    pending = [place for place in grid.places() if place not in log.trials]
    refused = _no_reuse(generator, settings)
    asked = _asked(generator, grid, pending) if refused else _reused(generator, grid, pending)
    with progress.bar("needle", total=len(pending)) as bar:
        for rows in asked:
            log.append(rows)
            bar.advance(len(rows))
    document["cells"] = [_cell(settings, cell, log) for cell in _grid(settings)]
    if settings.nested:
        document["by_length"] = [_over_texts(settings, each, log) for each in settings.lengths]
    document["reuse"] = {"used": refused is None, "reason": refused, **_saved(log)}
    columns = ("context_length", "depth", *SCORES, "mean_realised_length", "mean_realised_depth")
    return write_results(Path(out), document, columns, _draw)


def by_length(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {context_length, n, correct, mean, low, high} over all depths, ascending."""
    if nested := document.get("by_length"):
        return sorted(nested, key=lambda row: row["context_length"])
    cells = sorted(document["cells"], key=lambda cell: cell["context_length"])
    rows: list[dict[str, Any]] = []
    for length, found in groupby(cells, key=lambda cell: cell["context_length"]):
        counts = [(cell["correct"], cell["n"]) for cell in found]
        correct, n = (sum(column) for column in zip(*counts, strict=True))
        rows.append({"context_length": length, **share(correct, n)})
    return rows


def _grid(settings: NeedleSettings) -> list[_Cell]:
    return [(length, depth) for length in settings.lengths for depth in settings.all_depths]


def _no_reuse(generator: Generator, settings: NeedleSettings) -> str | None:
    """Return why every prompt is computed anew, or None where beginnings are reused."""
    from skipalign import reuse

    if not settings.nested:
        return "nested is false: every prompt has a text of its own"
    return reuse.refusal(generator) if settings.reuse else "reuse is false"


def _asked(
    generator: Generator, grid: PromptGrid, pending: Sequence[Place]
) -> Iterator[list[dict[str, Any]]]:
    """Ask prompts of one length together, so that short ones fill the generator's batches."""
    most, num_tokens = tokens_at_once(generator), grid.settings.max_new_tokens
    for length, same in groupby(sorted(pending), key=lambda place: place[0]):
        waiting, num = list(same), max(1, most // length)
        for start in range(0, len(waiting), num):
            prompts = [grid.prompt(place) for place in waiting[start : start + num]]
            ids = [prompt.ids.tolist() for prompt in prompts]
            for index, answer in answers_of(generator, ids, max_new_tokens=num_tokens):
                yield [_row(prompts[index], answer)]


def _reused(
    generator: Generator, grid: PromptGrid, pending: Sequence[Place]
) -> Iterator[list[dict[str, Any]]]:
    """Ask the prompts of a trial one after the other, each on what it shares with the last."""
    from skipalign import reuse

    places = grid.places()
    rng = np.random.default_rng([grid.settings.seed, _CHECKS])
    picks = rng.choice(len(places), size=min(_NUM_CHECKED, len(places)), replace=False)
    chosen = {places[pick] for pick in picks}
    for trial in sorted({place[2] for place in pending}):
        prompts = [grid.prompt(place) for place in pending if place[2] == trial]
        found = reuse.answers(
            cast("TransformersGenerator", generator),
            [prompt.ids.tolist() for prompt in prompts],
            max_new_tokens=grid.settings.max_new_tokens,
            checked=[index for index, each in enumerate(prompts) if each.place in chosen],
        )
        for each in found:
            row = _row(prompts[each.index], each.completion)
            check = asdict(each.check) if each.check else None
            yield [{**row, "computed_tokens": each.num_computed, "check": check}]


def _row(prompt: NeedlePrompt, completion: Completion) -> dict[str, Any]:
    """Return a trial as the log holds it."""
    return {
        "context_length": prompt.context_length,
        "depth": prompt.depth,
        "trial": prompt.trial,
        **graded(prompt.key, prompt.values, completion.text),
        "realised_length": len(prompt.ids),
        "realised_depth": round(prompt.realised_depth, 6),
    }


def _cell(settings: NeedleSettings, cell: _Cell, log: TrialLog) -> dict[str, Any]:
    rows = [log.trials[*cell, trial] for trial in range(settings.num_trials(cell[0]))]
    lengths, depths = ([row[f"realised_{name}"] for row in rows] for name in ("length", "depth"))
    return {
        "context_length": cell[0],
        "depth": cell[1],
        **scores(rows),
        "mean_realised_length": float(np.mean(lengths)),
        "mean_realised_depth": round(float(np.mean(depths)), 6),
        "realised_lengths": lengths,
        "realised_depths": depths,
    }


def _over_texts(settings: NeedleSettings, length: int, log: TrialLog) -> dict[str, Any]:
    """Return the score of a length in a nested grid: a trial of all depths is about one text."""
    texts = [
        [float(log.trials[length, depth, trial]["correct"]) for depth in settings.all_depths]
        for trial in range(settings.num_trials(length))
    ]
    return {"context_length": length, **share_of_groups(texts)}


def _saved(log: TrialLog) -> dict[str, Any]:
    """Return what reuse saved and how it compares with the plain way."""
    rows = list(log.trials.values())
    checks = [(row, row["check"]) for row in rows if row.get("check")]
    return {
        "prompt_tokens": sum(row["realised_length"] for row in rows),
        "computed_tokens": sum(row.get("computed_tokens", row["realised_length"]) for row in rows),
        "num_checked": len(checks),
        "largest_logit_difference": max((c["logit_difference"] for _, c in checks), default=None),
        "answers_that_differ": [
            {name: row[name] for name in ("context_length", "depth", "trial", "answer")}
            | {"plain_answer": check["answer"]}
            for row, check in checks
            if check["answer"] != row["answer"]
        ],
    }


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy by context length and depth, every cell with its number."""
    from matplotlib.figure import Figure

    cells = document["cells"]
    lengths = sorted({cell["context_length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    means = np.full((len(depths), len(lengths)), np.nan)
    for cell in cells:
        place = depths.index(cell["depth"]), lengths.index(cell["context_length"])
        means[place] = cell["mean"]
    size = (2.6 + 0.62 * len(lengths), 1.9 + 0.34 * len(depths))
    figure = Figure(figsize=(max(5.0, size[0]), max(3.2, size[1])), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(means, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45)
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth of the needle (% of the text)")
    trials = sorted({cell["n"] for cell in cells})
    axes.set_title(f"Needle in a haystack, {' or '.join(map(str, trials))} trials a cell")
    for (row, column), mean in np.ndenumerate(means):
        ink = "white" if mean < _MIDDLE_OF_CIVIDIS else "black"
        axes.text(column, row, f"{mean:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, ax=axes, label="accuracy (share of trials)")
    figure.savefig(path, format="png", dpi=150)
