"""LongBench v2: 503 questions with four options on contexts of 8 thousand to 2 million words.

Source: Bai et al. 2024, arXiv 2412.15204; THUDM/LongBench, pred.py and result.py: the zero-shot
prompt without reasoning, cut in the middle before the chat template, at most 128 tokens of answer.
Differs: greedy, where the published rows were sampled at a temperature of 0.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import DataError
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

TASK = "longbench_v2"
LENGTHS = ("short", "medium", "long")
_LABELS = ("length", "difficulty", "domain", "sub_domain")
_MAX_NEW_TOKENS = 128
_ANSWERS = (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])")
_COLUMNS = ("name", "n", "correct", "mean", "low", "high")
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class LongBenchV2Settings(SuiteSettings):
    """`data` is data.json, or a .jsonl or .parquet file with its fields, or a folder with one."""


def extracted(answer: str) -> str | None:
    """Return the letter that an answer gives, None where it does not answer in the form asked."""
    answer = answer.replace("*", "")
    found = (re.search(form, answer) for form in _ANSWERS)
    return next((match.group(1) for match in found if match), None)


def read_samples(settings: LongBenchV2Settings, path: Path) -> Iterator[Sample]:
    """Read the questions.

    Raises:
        DataError: the file is not as published.
    """
    for number, row in enumerate(read_rows(path, settings.limit), start=1):
        place = f"{path} row {number}"
        texts = {"$DOC$": "context", "$Q$": "question"}
        texts |= {f"$C_{letter}$": f"choice_{letter}" for letter in "ABCD"}
        prompt = published_prompts()[TASK]
        for mark, name in texts.items():
            prompt = prompt.replace(mark, str(field_of(row, name, place)).strip())
        yield Sample(
            id=str(field_of(row, "_id", place)),
            labels={name: field_of(row, name, place) for name in _LABELS},
            prompt=prompt,
            target=field_of(row, "answer", place),
            max_new_tokens=_MAX_NEW_TOKENS,
        )


def evaluate_longbench_v2(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: LongBenchV2Settings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every question; write longbench_v2.json, .csv and .png.

    Every answer is kept in longbench_v2.trials.jsonl: started again after a kill, this goes on.

    A cell is {name, n, correct, mean, low, high}, one for each class of lengths. `summary` holds
    the same for all questions, by difficulty and by domain, and how many answers name no letter.

    Returns:
        the document in longbench_v2.json.

    Raises:
        SkipalignError: data that is not as published, or a model that cannot be asked.
    """
    path = _file(Path(settings.data))
    asker = Asker(generator, tokenizer, settings)
    digest = sha256_of([path])
    log = asker.log(Path(out), TASK, digest)
    with progress.bar(TASK, num_rows([path], settings.limit)) as bar:
        rows = asker.ask(read_samples(settings, path), _score, log, bar)
    by_length = grouped(rows, "length")
    return write_suite(
        Path(out),
        TASK,
        _COLUMNS,
        settings=settings,
        data_sha256=digest,
        cells=[
            {"name": length, **accuracy(by_length[length,])}
            for length in (*LENGTHS, *sorted({name for (name,) in by_length} - {*LENGTHS}))
            if (length,) in by_length
        ],
        summary=_summary(rows),
    )


def _score(sample: Sample, answer: str) -> float:
    return float(extracted(answer) == sample.target)


def _summary(rows: list[Row]) -> dict[str, Any]:
    named = {"all": accuracy(rows)}
    for label in ("difficulty", "domain"):
        named |= {str(name): accuracy(each) for (name,), each in grouped(rows, label).items()}
    no_letter = sum(extracted(row["prediction"]) is None for row in rows)
    return {**named, **counts(rows), "num_without_letter": no_letter}


def _file(data: Path) -> Path:
    if data.is_file():
        return data
    found = [path for path in sorted(data.glob("*")) if path.suffix in (".json", ".jsonl")]
    found += sorted(data.glob("*.parquet"))
    if len(found) != 1:
        raise DataError(
            f"{data}: holds {len(found)} .json, .jsonl or .parquet files; give LongBench v2's "
            "data.json itself"
        )
    return found[0]
