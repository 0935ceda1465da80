"""RULER: 13 tasks made at any length, from needles over chains of variables to questions.

Source: Hsieh et al. 2024, arXiv 2404.06654; NVIDIA/RULER: its prompts, answer lengths, string
matches, and 85.6, what Llama-2-7B-chat scores at 4,096 tokens, as the score of an effective length.
Differs: see `ruler_samples`; a prompt is filled to within a few units of the length asked, where
the published code takes steps of 5 to 500; the essay is the built-in prose, where none is given
(published: Paul Graham's essays, which are not free to distribute).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.haystack import read_haystack
from skipalign.evaluation.ruler_samples import (
    SUBTASKS,
    Needles,
    Question,
    QuestionFile,
    Sources,
    Subtask,
    Trial,
    published,
)
from skipalign.evaluation.suites import (
    Asker,
    AskSettings,
    Row,
    Sample,
    counts,
    grouped,
    mean_of_means,
    mean_score,
    write_suite,
)
from skipalign.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Generator

TASK = "ruler"
THRESHOLD = 0.856
_COLUMNS = ("name", "context_length", "n", "mean", "low", "high", "mean_tokens")
_CONTROL = re.compile(r"[\x00-\x1f]")
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class RulerSettings(AskSettings):
    """The lengths, the tasks, and where prose and questions come from.

    Args:
        lengths: tokens of prompt and longest answer together, the chat template included.
        tasks: which of the 13; None takes all.
        trials: prompts of each task and length; 500 are published.
        seed: of everything that is drawn.
        haystack: a text file or a folder of *.txt for the essay; None is the built-in prose. It
            begins at its top in every prompt.
        squad: the file of qa_1, as published: SQuAD's dev-v2.0.json.
        hotpotqa: the file of qa_2, as published: hotpot_dev_distractor_v1.json.
        chat: whether the chat template goes around a prompt; False is for base models.
        template_kwargs: what the chat template takes, such as `enable_thinking`.
    """

    lengths: tuple[int, ...]
    tasks: tuple[str, ...] | None = None
    trials: int = 500
    seed: int = 42
    haystack: str | None = None
    squad: str | None = None
    hotpotqa: str | None = None
    chat: bool = True

    def __post_init__(self) -> None:
        """Raises RecipeError for a grid without cells, unknown tasks, or questions of no file."""
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise RecipeError(
                f"lengths are {list(self.lengths)}; give unlike numbers of tokens, at least one"
            )
        if self.trials < 1 or self.seed < 0:
            raise RecipeError(
                f"trials are {self.trials}, seed {self.seed}; they must be at least 1 and 0"
            )
        names = self.subtasks
        unknown = [name for name in names if name not in SUBTASKS]
        if unknown or not names or len(set(names)) < len(names):
            raise RecipeError(
                f"tasks are {list(names)}; give unlike names of {', '.join(SUBTASKS)}"
            )
        for name, setting in _FILES.items():
            if name in names and getattr(self, setting) is None:
                raise RecipeError(
                    f"tasks hold {name} and {setting} is None; give its published file as "
                    f"{setting}, or leave {name} out of tasks"
                )

    @property
    def subtasks(self) -> tuple[str, ...]:
        """The tasks asked for, by name."""
        return tuple(SUBTASKS) if self.tasks is None else self.tasks


# --------------------------------------------------------------------------------- sources


def read_squad(data: Any) -> QuestionFile:
    """Read SQuAD 1.1 or 2.0; questions that have no answer are left out.

    Raises:
        KeyError, TypeError, ValueError: it is not as published.
    """
    articles = [article["paragraphs"] for article in data["data"]]
    documents = sorted({each["context"] for each in chain.from_iterable(articles)})
    number = {text: index for index, text in enumerate(documents)}
    found: list[Question] = []
    for article in articles:
        members = dict.fromkeys(number[each["context"]] for each in article)
        for each in article:
            own = number[each["context"]]
            near = tuple(other for other in members if other != own)
            found += [
                Question(row["question"], tuple(a["text"] for a in row["answers"]), (own,), near)
                for row in each["qas"]
                if not row.get("is_impossible", False)
            ]
    return QuestionFile(tuple(found), tuple(documents))


def read_hotpotqa(data: Any) -> QuestionFile:
    """Read HotpotQA with its ten documents of each question.

    Raises:
        KeyError, TypeError, ValueError: it is not as published.
    """
    owned = [
        [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in data
    ]
    documents = sorted(set(chain.from_iterable(owned)))
    number = {text: index for index, text in enumerate(documents)}
    found: list[Question] = []
    for row, texts in zip(data, owned, strict=True):
        own = tuple(number[text] for text in dict.fromkeys(texts))
        found.append(Question(row["question"], (row["answer"],), own))
    return QuestionFile(tuple(found), tuple(documents))


_FILES = {"qa_1": "squad", "qa_2": "hotpotqa"}
_READERS: dict[str, Callable[[Any], QuestionFile]] = {"qa_1": read_squad, "qa_2": read_hotpotqa}


def read_sources(settings: RulerSettings) -> tuple[Sources, str]:
    """Return what prompts are made of, and a digest of it.

    Raises:
        DataError: a file is absent, not as published, or has too few questions.
    """
    digest = hashlib.sha256(json.dumps(published()).encode())
    essay: tuple[str, ...] = ()
    kinds = [SUBTASKS[name] for name in settings.subtasks]
    if any(isinstance(each, Needles) and each.haystack == "essay" for each in kinds):
        text = read_haystack(settings.haystack)
        digest.update(text.encode())
        essay = tuple(text.split())
    files: dict[str, QuestionFile] = {}
    for name in _FILES:
        if name in settings.subtasks:
            path = Path(getattr(settings, _FILES[name]))
            files[name], content = _read_questions(path, name, settings.trials)
            digest.update(content)
    return Sources(settings.seed, essay, files), digest.hexdigest()


def _read_questions(path: Path, task: str, num_asked: int) -> tuple[QuestionFile, bytes]:
    if not path.is_file():
        raise DataError(f"{_FILES[task]} {path}: no such file; give the published file")
    content = path.read_bytes()
    try:
        found = _READERS[task](json.loads(content))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{_FILES[task]} {path}: not as published ({type(error).__name__}: {error}); give the "
            "published file"
        ) from None
    if len(found.questions) < num_asked:
        raise DataError(
            f"{_FILES[task]} {path}: has {len(found.questions):,} questions, and trials are "
            f"{num_asked:,}; ask for fewer trials, or give the whole file"
        )
    return found, content


# --------------------------------------------------------------------------------- prompts


class SampleMaker:
    """Makes prompts as long as fits.

    Args:
        asker: puts them to a model, and knows how many tokens they have.
        sources: see `read_sources`.
    """

    def __init__(self, asker: Asker, sources: Sources) -> None:
        self._asker, self._sources = asker, sources

    def samples(self, settings: RulerSettings) -> Iterator[Sample]:
        """Make all prompts, one length after the other.

        Raises:
            RecipeError: a length that the shortest prompt of a task exceeds.
        """
        for length in settings.lengths:
            for name in settings.subtasks:
                trials = [Trial(self._sources, length, i) for i in range(settings.trials)]
                num_units = self._num_units(SUBTASKS[name], trials[0])
                for trial in trials:
                    yield self._sample(SUBTASKS[name], trial, num_units)

    def _num_units(self, subtask: Subtask, trial: Trial) -> int:
        """Return how many units fit into the first prompt, found by doubling, then halving.

        The last steps, of less than a hundredth, are left out: other prompts have other words.
        """
        num, step, most = subtask.least, 1, subtask.most(trial)
        while num + step <= most and self._fits(subtask, trial, num + step):
            num, step = num + step, step * 2
        while (step := step // 2) > num // 128:
            if num + step <= most and self._fits(subtask, trial, num + step):
                num += step
        return num

    def _fits(self, subtask: Subtask, trial: Trial, num_units: int) -> bool:
        sample = _sample_of(subtask, trial, num_units)
        return self._num_tokens(sample) <= trial.context_length

    def _num_tokens(self, sample: Sample) -> int:
        return len(self._asker.tokens(sample)[0]) + sample.max_new_tokens

    def _sample(self, subtask: Subtask, trial: Trial, num_units: int) -> Sample:
        """Make a prompt of so many units, or of fewer where these do not fit."""
        sample = _sample_of(subtask, trial, num_units)
        while (num_tokens := self._num_tokens(sample)) > trial.context_length:
            if num_units == subtask.least:
                raise RecipeError(
                    f"length {trial.context_length:,}: the shortest prompt of {subtask.name} "
                    f"number {trial.index + 1} takes {num_tokens:,} tokens with its answer - leave "
                    "the length or the task out"
                )
            num_units = max(subtask.least, num_units - max(1, num_units // 64))
            sample = _sample_of(subtask, trial, num_units)
        return sample


def _sample_of(subtask: Subtask, trial: Trial, num_units: int) -> Sample:
    puzzle = subtask.puzzle(num_units, trial)
    return Sample(
        id=f"{subtask.name}-{trial.context_length}-{trial.index + 1}",
        labels={"name": subtask.name, "context_length": trial.context_length},
        prompt=puzzle.prompt,
        target=list(puzzle.targets),
        max_new_tokens=published()[subtask.form]["max_new_tokens"],
        answer_start=puzzle.answer_start,
    )


# --------------------------------------------------------------------------------- scores


def match_all(answer: str, targets: Sequence[str]) -> float:
    """Return the share of the targets that stand in an answer, letter case apart.

    Source: NVIDIA/RULER, string_match_all.
    """
    said = _CONTROL.sub("\n", answer).lower()
    return sum(target.lower() in said for target in targets) / len(targets)


def match_part(answer: str, targets: Sequence[str]) -> float:
    """Return 1 where any of the targets stands in an answer, else 0.

    Source: NVIDIA/RULER, string_match_part.
    """
    return float(match_all(answer, targets) > 0)


def _score(sample: Sample, answer: str) -> float:
    is_question = sample.labels["name"] in _FILES
    return (match_part if is_question else match_all)(answer, sample.target)


def evaluate_ruler(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: RulerSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every prompt; write ruler.json, .csv and .png.

    Every answer is kept in ruler.trials.jsonl: started again after a kill, this goes on.

    A cell is {name, context_length, n, mean, low, high, mean_tokens, values}, one for each task
    and length. `by_length` holds the mean over the tasks of each length, with a bootstrap within
    each task. With all 13, `summary` names the effective length: the longest whose mean is above
    0.856 (None without one).

    Returns:
        the document in ruler.json.

    Raises:
        SkipalignError: files that are not as published, a length too short for a task, or a model
            that cannot be asked.
    """
    sources, digest = read_sources(settings)
    asker = Asker(generator, tokenizer, settings, chat=settings.chat)
    log = asker.log(Path(out), TASK, digest)
    total = len(settings.lengths) * len(settings.subtasks) * settings.trials
    with progress.bar(TASK, total=total) as bar:
        rows = asker.ask(SampleMaker(asker, sources).samples(settings), _score, log, bar)
    lengths = sorted(settings.lengths)
    by_length = [{"context_length": length, **_average(rows, length)} for length in lengths]
    return write_suite(
        Path(out),
        TASK,
        _COLUMNS,
        settings=settings,
        data_sha256=digest,
        cells=[
            {"name": name, "context_length": length, **_cell(each)}
            for (name, length), each in grouped(rows, "name", "context_length").items()
        ],
        by_length=by_length,
        summary={
            **{f"mean of tasks, {row['context_length']:,}": row for row in by_length},
            "effective_length": _effective(by_length, settings),
            **counts(rows),
        },
    )


def _cell(rows: Sequence[Row]) -> dict[str, Any]:
    mean_tokens = round(sum(row["num_tokens"] for row in rows) / len(rows))
    values = [row["score"] for row in rows]
    return {**mean_score(rows), "mean_tokens": mean_tokens, "values": values}


def _average(rows: Sequence[Row], length: int) -> dict[str, Any]:
    same = [row for row in rows if row["context_length"] == length]
    return mean_of_means(list(grouped(same, "name").values()))


def _effective(by_length: Sequence[Mapping[str, Any]], settings: RulerSettings) -> int | None:
    if set(settings.subtasks) != set(SUBTASKS):
        return None
    above = [row["context_length"] for row in by_length if row["mean"] > THRESHOLD]
    return max(above, default=None)
