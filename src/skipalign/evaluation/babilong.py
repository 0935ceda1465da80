"""BABILong: facts of bAbI hidden in books, and a question that needs one or more of them.

Source: Kuratov et al. 2024, arXiv 2402.10790 and 2406.10149; booydar/babilong: the default prompts
with instruction, examples and post-prompt, at most 20 tokens of answer, and its comparison.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.published import (
    field_of,
    num_rows,
    published_prompts,
    read_rows,
    sha256_of,
)
from skipalign.evaluation.suites import (
    Asker,
    Row,
    Sample,
    SuiteSettings,
    accuracy,
    counts,
    grouped,
    write_suite,
)
from skipalign.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Generator

TASK = "babilong"
_MAX_NEW_TOKENS = 20
_TASK_NAME = re.compile(r"(?:^|[/_-])(qa\d{1,2})(?=[/._-]|$)")
_LENGTH = re.compile(r"(?:^|[/_-])(\d+[kM])(?=[/._-]|$)")
_COLUMNS = ("name", "context_length", "n", "correct", "mean", "low", "high")
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class BabilongSettings(SuiteSettings):
    """`data` is a folder; each file's path names task and length: 4k/qa1*.parquet, qa1/4k.json.

    Args:
        tasks: which of qa1 to qa10; None takes all that are there.
        sizes: which lengths by their published names, such as 4k; None takes all.
    """

    tasks: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raises RecipeError for a task without a published prompt."""
        super().__post_init__()
        known = published_prompts()[TASK]["tasks"]
        if unknown := [name for name in self.tasks or () if name not in known]:
            raise RecipeError(
                f"tasks are {list(self.tasks or ())}; {unknown[0]!r} is none of {', '.join(known)}"
            )


def is_correct(task: str, question: str, target: str, answer: str) -> bool:
    """Whether the answer's first sentence names the target's labels and no other.

    Labels that the question names do not count. As published, a label is looked for within words:
    "none" names "one" too, so that in qa7 no answer of none is ever right.
    """
    said = re.split(r"\.|<context>|<example>", answer.lower(), maxsplit=1)[0]
    labels = {label.lower() for label in published_prompts()[TASK]["tasks"][task]["labels"]}
    named = {label for label in labels if label in said and label not in question.lower()}
    target = target.lower()
    wanted = set(target.split(",")) if "," in target and len(target) > 3 else {target}
    return named == wanted


def find_files(settings: BabilongSettings) -> dict[tuple[str, str], list[Path]]:
    """Return the files of each (size, task), short sizes first.

    Raises:
        DataError: the folder has none.
    """
    data = Path(settings.data)
    known = published_prompts()[TASK]["tasks"]
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        task, size = _TASK_NAME.search(name), _LENGTH.search(name)
        if path.suffix not in (".json", ".jsonl", ".parquet") or not task or not size:
            continue
        asked = settings.sizes is None or size[1] in settings.sizes
        if asked and task[1] in (settings.tasks or known):
            found.setdefault((size[1], task[1]), []).append(path)
    if not found:
        raise DataError(
            f"{data}: no file is named for a task and a size that were asked for; give the "
            "published folder, with files such as 4k/qa1-00000-of-00001.parquet or qa1/4k.json"
        )
    order = list(known)
    return dict(sorted(found.items(), key=lambda one: (_words(one[0][0]), order.index(one[0][1]))))


def read_samples(
    settings: BabilongSettings, files: Mapping[tuple[str, str], list[Path]]
) -> Iterator[Sample]:
    """Read the questions.

    Raises:
        DataError: a file is not as published.
    """
    prompts = published_prompts()[TASK]
    for (size, task), paths in files.items():
        words = {
            key: prompts["tasks"][task][key] for key in ("instruction", "examples", "post_prompt")
        }
        rows = (row for path in paths for row in read_rows(path, settings.limit))
        for number, row in enumerate(rows, start=1):
            place = f"{paths[0].parent} {task} {size} row {number}"
            question = str(field_of(row, "question", place))
            prompt = prompts["template"].format(
                **words, context=str(field_of(row, "input", place)).strip(), question=question
            )
            yield Sample(
                id=f"{task}-{size}-{number}",
                labels={"name": task, "size": size, "question": question},
                prompt=prompt.strip(),
                target=field_of(row, "target", place),
                max_new_tokens=_MAX_NEW_TOKENS,
            )


def evaluate_babilong(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: BabilongSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every question; write babilong.json, .csv and .png.

    Every answer is kept in babilong.trials.jsonl: started again after a kill, this goes on.

    A cell is {name, size, context_length, n, correct, mean, low, high}: task, published size, and
    the mean tokens of all prompts of that size. `by_length` holds the sizes with their tasks
    together.

    Returns:
        the document in babilong.json.

    Raises:
        SkipalignError: data that is not as published, or a model that cannot be asked.
    """
    files = find_files(settings)
    asker = Asker(generator, tokenizer, settings)
    digest = sha256_of(path for paths in files.values() for path in paths)
    log = asker.log(Path(out), TASK, digest)
    total = sum(num_rows(paths, settings.limit) for paths in files.values())
    with progress.bar(TASK, total) as bar:
        rows = asker.ask(read_samples(settings, files), _score, log, bar)
    sizes = {size: each for (size,), each in grouped(rows, "size").items()}
    lengths = {size: _mean_tokens(each) for size, each in sizes.items()}
    return write_suite(
        Path(out),
        TASK,
        _COLUMNS,
        settings=settings,
        data_sha256=digest,
        cells=[
            {"name": task, "size": size, "context_length": lengths[size], **accuracy(each)}
            for (size, task), each in grouped(rows, "size", "name").items()
        ],
        by_length=[
            {"size": size, "context_length": lengths[size], **accuracy(each)}
            for size, each in sizes.items()
        ],
        summary={**{size: accuracy(each) for size, each in sizes.items()}, **counts(rows)},
    )


def _score(sample: Sample, answer: str) -> float:
    labels = sample.labels
    return float(is_correct(labels["name"], labels["question"], sample.target, answer))


def _mean_tokens(rows: list[Row]) -> int:
    return round(sum(row["num_tokens"] for row in rows) / len(rows))


def _words(size: str) -> int:
    """Return a published size as a number, to sort by."""
    return int(size[:-1]) * (1_000_000 if size[-1] == "M" else 1_000)
