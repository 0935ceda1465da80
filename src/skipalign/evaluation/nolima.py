"""NoLiMa: a needle whose words the question does not share, in shuffled books.

Source: Modarressi et al. 2025, arXiv 2502.05167, section 4: needles after line breaks at 26 depths
of 5 books; an answer is right when it holds the character's name; base score, effective length.
Differs: characters are drawn by numpy's Generator, where the published code draws with the older
one; books are taken in the order of their names.

The benchmark's licence forbids commercial use, and its files are not part of this package. Its own
prompt is none of those files: give it as `task_template` to compare with published rows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.published import field_of, read_rows, sha256_of
from skipalign.evaluation.suites import (
    Asker,
    Row,
    Sample,
    SuiteSettings,
    accuracy,
    counts,
    grouped,
    mean_score,
    write_suite,
)
from skipalign.progress import Progress, Silent
from skipalign.tokens import DataTokenizer, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Generator

TASK = "nolima"
BASE_LENGTHS = (250, 500, 1000)
THRESHOLD = 0.85
# Ours: the published wording is under a licence that this package cannot carry.
TASK_TEMPLATE = (
    "Here is part of a book:\n\n{haystack}\n\nAnswer the question from this text alone, from what "
    "it says or what follows from it. Answer in a few words, without an explanation.\n\n"
    "Question: {question}"
)
_COLUMNS = ("name", "context_length", "n", "correct", "mean", "low", "high")
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class NolimaSettings(SuiteSettings):
    """`data` is the published folder, with needlesets/ and haystack/rand_shuffle/.

    Args:
        lengths: tokens of the book in a prompt; needle, question and template come on top.
        depths: how many, spread evenly from 0 to 1.
        needle_set: a file of needlesets/.
        task_template: with `{haystack}` and `{question}`; None is the needle set's own, else
            TASK_TEMPLATE.
        max_new_tokens: the longest answer.
        seed: of the characters' names.
    """

    lengths: tuple[int, ...] = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
    depths: int = 26
    needle_set: str = "needle_set.json"
    task_template: str | None = None
    max_new_tokens: int = 192
    seed: int = 42

    def __post_init__(self) -> None:
        """Raises RecipeError for a grid without cells, or a template without its places."""
        super().__post_init__()
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise RecipeError(
                f"lengths are {list(self.lengths)}; give unlike numbers of tokens, at least one"
            )
        if self.depths < 1 or self.max_new_tokens < 1 or self.seed < 0:
            raise RecipeError(
                f"depths are {self.depths}, max_new_tokens {self.max_new_tokens}, seed "
                f"{self.seed}; they must be at least 1, 1 and 0"
            )
        for place in ("{haystack}", "{question}"):
            if self.task_template is not None and place not in self.task_template:
                raise RecipeError(f"task_template is {self.task_template!r}; it must hold {place}")


@dataclass(frozen=True, slots=True)
class Question:
    """A needle with a question about it; `{CHAR}` stands for the character's name."""

    experiment: str
    test: str
    kind: str
    needle: str
    question: str
    characters: tuple[str, ...]
    golds: tuple[str, ...]
    template: str
    system: str

    @property
    def name(self) -> str:
        """Its name among the trials."""
        return f"{self.experiment}_{self.test}_{self.kind}"


def read_questions(settings: NolimaSettings, path: Path) -> list[Question]:
    """Read a needle set.

    Raises:
        DataError: it is not as published.
    """
    found: list[Question] = []
    for number, row in enumerate(read_rows(path), start=1):
        place = f"{path} entry {number}"
        needle, tests = field_of(row, "needle", place), field_of(row, "tests", place)
        for kind, question in field_of(row, "questions", place).items():
            for test, given in tests.items():
                arguments = given.get("input_args", [])
                found.append(
                    Question(
                        experiment=str(field_of(row, "id", place)),
                        test=str(test),
                        kind=str(kind),
                        needle=_filled(needle, arguments),
                        question=_filled(question, arguments),
                        characters=tuple(row.get("character_set") or ()),
                        golds=tuple(given.get("gold_answers") or ()),
                        template=settings.task_template
                        or row.get("task_template")
                        or TASK_TEMPLATE,
                        system=str(row.get("system_prompt") or ""),
                    )
                )
                lacking = "character_set" if "{CHAR}" in needle else "gold_answers"
                if not (found[-1].characters if "{CHAR}" in needle else found[-1].golds):
                    raise DataError(f"{place}: has no {lacking}; give the published file")
    return found


def _filled(text: str, arguments: Sequence[str]) -> str:
    for number, argument in enumerate(arguments, start=1):
        text = text.replace(f"{{{number}}}", argument)
    return text


class Book:
    """A book as tokens, and the tokens with a line break, before which a needle may stand."""

    def __init__(self, path: Path, tokens_of: DataTokenizer) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.tokens: Tokens = tokens_of.tokenize([self.text])[0]
        breaks = [match.start() for match in re.finditer("\n", self.text)]
        at = np.searchsorted(self.tokens.stops, breaks, side="right")
        self.borders: Int[np.ndarray, " B"] = np.unique(np.append(0, at))

    def with_needle(self, needle: str, length: int, depth: float) -> str:
        """Return `length` tokens of the book with the needle at the line break next to `depth`.

        As published: the first break at or after depth x (length + 1) tokens of the book, and the
        tokens around it, so that round(depth x length) of them are before.

        Raises:
            DataError: the book is too short.
        """
        place = int(np.searchsorted(self.borders, depth * (length + 1)))
        border = int(self.borders[place]) if place < len(self.borders) else len(self.tokens)
        start = border - round(length * depth)
        stop = start + length
        if border >= len(self.tokens) or stop > len(self.tokens):
            raise DataError(
                f"{self.path}: has {len(self.tokens):,} tokens of this tokenizer, too few for a "
                f"length of {length:,} at depth {depth:.2f}; leave this length out"
            )
        starts, stops = self.tokens.starts, self.tokens.stops
        before = self.text[starts[start] : stops[border]]
        before = before[: max(before.rfind("\n"), 0)]
        after = self.text[stops[border] : stops[stop - 1]] if stop > border + 1 else ""
        return f"{before} {needle}\n{after}"


def read_samples(
    settings: NolimaSettings, questions: Sequence[Question], books: Sequence[Book]
) -> Iterator[Sample]:
    """Make the prompts: length by length, each question in each book at each depth."""
    depths = np.linspace(0, 1, settings.depths)
    for length in settings.lengths:
        for question in questions[: settings.limit]:
            for number, book in enumerate(books):
                rng = np.random.default_rng([settings.seed, *_digits(question.experiment), number])
                for place, depth in enumerate(depths):
                    names = question.characters
                    name = str(rng.choice(list(names))) if names else ""
                    needle, asked = (
                        text.replace("{CHAR}", name)
                        for text in (question.needle, question.question)
                    )
                    text = book.with_needle(needle, length, float(depth))
                    prompt = question.template.replace("{haystack}", text)
                    yield Sample(
                        id=f"{question.name}-{length}-{book.path.stem}-{place}",
                        labels={
                            "context_length": length,
                            "question": question.name,
                            "kind": question.kind,
                            "depth": round(float(depth), 6),
                        },
                        prompt=prompt.replace("{question}", asked),
                        target=[name] if "{CHAR}" in question.needle else list(question.golds),
                        max_new_tokens=settings.max_new_tokens,
                        system=question.system,
                    )


def _digits(experiment: str) -> tuple[int, ...]:
    found = re.match(r"\d+", experiment)
    return (int(found.group()),) if found else tuple(experiment.encode())


def evaluate_nolima(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: NolimaSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every question; write nolima.json, nolima.csv and nolima.png.

    Every answer is kept in nolima.trials.jsonl: started again after a kill, this goes on.

    A cell is {name, context_length, n, correct, mean, low, high}; `context_length` counts the
    book's tokens. `summary` holds accuracy by kind of question and length, the base score, and
    the effective length: the longest with more than 0.85 of the base score (None without one).

    Returns:
        the document in nolima.json.

    Raises:
        SkipalignError: data that is not as published, or a model that cannot be asked.
    """
    data = Path(settings.data)
    path = data / "needlesets" / settings.needle_set
    texts = sorted((data / "haystack" / "rand_shuffle").glob("*.txt"))
    if not path.is_file() or not texts:
        raise DataError(
            f"{data}: lacks needlesets/{settings.needle_set} or haystack/rand_shuffle/*.txt; give "
            "the published folder"
        )
    asker = Asker(generator, tokenizer, settings)
    digest = sha256_of([path, *texts])
    tokens_of = DataTokenizer(tokenizer)
    questions = read_questions(settings, path)
    samples = read_samples(settings, questions, [Book(text, tokens_of) for text in texts])
    log = asker.log(Path(out), TASK, digest)
    asked = len(questions[: settings.limit]) * len(texts) * settings.depths
    with progress.bar(TASK, total=asked * len(settings.lengths)) as bar:
        rows = asker.ask(samples, _score, log, bar)
    return write_suite(
        Path(out),
        TASK,
        _COLUMNS,
        settings=settings,
        data_sha256=digest,
        cells=[
            {"name": f"{length:,}", "context_length": length, **accuracy(each)}
            for (length,), each in sorted(grouped(rows, "context_length").items())
        ],
        summary=_summary(rows),
    )


def _score(sample: Sample, answer: str) -> float:
    return float(any(gold in answer for gold in sample.target))


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return accuracy by kind of question and length, base score and effective length."""
    kinds = {
        f"{kind}, {length:,}": accuracy(each)
        for (kind, length), each in grouped(rows, "kind", "context_length").items()
    }
    base = _base_score(rows)
    longest = [
        length
        for (length,), each in grouped(rows, "context_length").items()
        if base is not None and accuracy(each)["mean"] > THRESHOLD * base["mean"]
    ]
    return {
        **kinds,
        **({"base score": base} if base else {}),
        "effective_length": max(longest, default=None),
        **counts(rows),
    }


def _base_score(rows: Sequence[Row]) -> Mapping[str, Any] | None:
    """Return the mean over questions of the best accuracy at 250, 500 and 1,000 tokens."""
    short = [row for row in rows if row["context_length"] in BASE_LENGTHS]
    best: dict[str, float] = {}
    for (question, _), each in grouped(short, "question", "context_length").items():
        best[question] = max(best.get(question, 0.0), accuracy(each)["mean"])
    return mean_score([{"score": score} for score in best.values()]) if best else None
