"""Short instructions with one right answer each: what a model could do before it learnt far reach.

144 items of twelve kinds come with the package, so the check needs no network: copy, count, sort,
arithmetic, extract, yes_no, reorder, rewrite, format, compare, odd_one_out, lookup. A rule scores
each answer, no model judges. It tells two trainings of one base apart; it ranks no models.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.metrics import contains_value
from skipalign.evaluation.published import field_of, read_rows, sha256_of
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

TASK = "short_check"
BUILT_IN = "built-in"
_COLUMNS = ("name", "n", "correct", "mean", "low", "high")
_MARKS = "\"'“”‘’`"
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class ShortCheckSettings(SuiteSettings):
    """Which items are asked.

    Args:
        data: `built-in`, or a .jsonl file of one's own items: id, kind, prompt, rule, target, and
            what the rule takes besides.
        kinds: which kinds; None takes all.
        max_new_tokens: the longest answer; a model that thinks before it answers needs more.
    """

    data: str = BUILT_IN
    kinds: tuple[str, ...] | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        """Raises RecipeError for settings that leave nothing."""
        super().__post_init__()
        if self.max_new_tokens < 1 or self.kinds == ():
            raise RecipeError(
                f"max_new_tokens is {self.max_new_tokens}, kinds are {self.kinds}; give at least 1 "
                "token, and at least one kind or none at all"
            )


# ---------------------------------------------------------------------------------- rules

# What a rule takes: the answer without thoughts and outer space, and the item.
Item = Mapping[str, Any]


def _exact(answer: str, item: Item) -> bool:
    return answer.strip(_MARKS) == item["target"]


def _said(answer: str, item: Item) -> bool:
    """The target alone, whatever its case and the mark at its end."""
    return _plain(answer) == _plain(item["target"])


def _number(answer: str, item: Item) -> bool:
    """The last number of the answer, so that "7 + 5 = 12" is right."""
    found = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer))
    return bool(found) and float(found[-1]) == item["target"]


def _choice(answer: str, item: Item) -> bool:
    """One of the options is named, and it is the target."""
    return [each for each in item["options"] if contains_value(answer, each)] == [item["target"]]


def _list(answer: str, item: Item) -> bool:
    parts = [part for part in re.split(r"[,;\n]", answer) if part.strip()]
    return [_plain(part) for part in parts] == [_plain(each) for each in item["target"]]


def _lines(answer: str, item: Item) -> bool:
    return [line.strip() for line in answer.splitlines() if line.strip()] == list(item["target"])


def _words(answer: str, item: Item) -> bool:
    """As many words as asked, of letters alone, each with the initial asked."""
    found = answer.split()
    fits = (each.isalpha() and each.casefold().startswith(item["initial"]) for each in found)
    return len(found) == item["count"] and all(fits)


def _json(answer: str, item: Item) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else answer) == item["target"]
    except ValueError:
        return False


RULES: dict[str, Callable[[str, Item], bool]] = {
    "exact": _exact,
    "said": _said,
    "number": _number,
    "choice": _choice,
    "list": _list,
    "lines": _lines,
    "words": _words,
    "json": _json,
}
# What an item holds besides `target`, by its rule.
_TAKES = {"choice": ("options",), "words": ("count", "initial")}


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(f"{_MARKS}.!? \t").split())


def is_right(answer: str, item: Item) -> bool:
    """Whether an answer is right by the item's rule; a closed thought before it does not count."""
    return RULES[item["rule"]](answer.rpartition("</think>")[2].strip(), item)


# ------------------------------------------------------------------------------------ items


def read_items(settings: ShortCheckSettings) -> Iterator[Row]:
    """Yield the items that are asked.

    Raises:
        DataError: an item that cannot be scored, or a kind that no item has.
    """
    kinds: set[str] = set()
    for number, item in enumerate(read_rows(_path(settings)), start=1):
        place = f"{settings.data} item {number}"
        for name in ("id", "kind", "prompt", "rule", "target"):
            field_of(item, name, place)
        if item["rule"] not in RULES:
            raise DataError(f"{place}: rule is {item['rule']!r}; known: {', '.join(RULES)}")
        for name in _TAKES.get(item["rule"], ()):
            field_of(item, name, place)
        kinds.add(item["kind"])
        if settings.kinds is None or item["kind"] in settings.kinds:
            yield item
    if unknown := [kind for kind in settings.kinds or () if kind not in kinds]:
        raise DataError(
            f"{settings.data}: no item is of the kind {unknown[0]!r}; it has "
            f"{', '.join(sorted(kinds))}"
        )


def _path(settings: ShortCheckSettings) -> Path:
    if settings.data != BUILT_IN:
        return Path(settings.data)
    return Path(str(resources.files("skipalign.evaluation"))) / "short_check_data" / "items.jsonl"


def evaluate_short_check(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: ShortCheckSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every item; write short_check.json, .csv and .png.

    Every answer is kept in short_check.trials.jsonl: started again after a kill, this goes on.

    A cell is {name, n, correct, mean, low, high}, one for each kind; `summary` holds all together.

    Returns:
        the document in short_check.json.

    Raises:
        SkipalignError: items that cannot be read, or a model that cannot be asked.
    """
    asked = list(read_items(settings))[: settings.limit]
    items = {str(item["id"]): item for item in asked}
    samples = [
        Sample(
            id=str(item["id"]),
            labels={"name": item["kind"]},
            prompt=item["prompt"],
            target=item["target"],
            max_new_tokens=settings.max_new_tokens,
        )
        for item in asked
    ]
    asker = Asker(generator, tokenizer, settings)
    digest = sha256_of([_path(settings)])
    log = asker.log(Path(out), TASK, digest)
    with progress.bar(TASK, total=len(samples)) as bar:
        rows = asker.ask(samples, lambda one, said: float(is_right(said, items[one.id])), log, bar)
    return write_suite(
        Path(out),
        TASK,
        _COLUMNS,
        settings=settings,
        data_sha256=digest,
        cells=[{"name": kind, **accuracy(each)} for (kind,), each in grouped(rows, "name").items()],
        summary={"all": accuracy(rows), **counts(rows)},
    )
