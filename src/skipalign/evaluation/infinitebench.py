"""InfiniteBench: twelve tasks on contexts of 100 thousand tokens and more.

Source: Zhang et al. 2024, arXiv 2402.13718; OpenBMB/InfiniteBench: its prompts, answer lengths and
compute_scores.py, in which each task has a rule of its own.
Differs: a prompt is cut only where max_prompt_tokens says so (published: to the 128 thousand tokens
of the model); a rule that ends in an exception there, as for a fraction where a whole number is
right, scores 0; the first value of math_calc counts for chat models too.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipalign.errors import DataError, RecipeError
from skipalign.evaluation.longbench_metrics import characters_zh, token_f1, words
from skipalign.evaluation.published import (
    field_of,
    num_rows,
    published_prompts,
    read_rows,
    sha256_of,
)
from skipalign.evaluation.rouge_lsum import rouge_lsum
from skipalign.evaluation.suites import (
    Asker,
    Row,
    Sample,
    SuiteSettings,
    counts,
    grouped,
    mean_score,
    write_suite,
)
from skipalign.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Generator

TASK = "infinitebench"
_COLUMNS = ("name", "n", "mean", "low", "high")
_CHAT_MAX_NEW_TOKENS = 1024
_CHOICES = "ABCD"
_QUOTES = "\n:\"'.,?!{}"
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchSettings(SuiteSettings):
    """`data` is a folder with one TASK.jsonl for each task.

    Args:
        tasks: which of the twelve; None takes all that are there.
        chat: False is how the published open models were asked: prompts to be continued, without
            a chat template, answers cut at the published length. True takes the prompts that
            GPT-4 was asked with, the chat template, and at least 1,024 tokens of answer.
    """

    tasks: tuple[str, ...] | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        """Raises RecipeError for a task that there is not."""
        super().__post_init__()
        if unknown := [name for name in self.tasks or () if name not in SCORES]:
            raise RecipeError(
                f"tasks are {list(self.tasks or ())}; {unknown[0]!r} is none of {', '.join(SCORES)}"
            )


def find_files(settings: InfiniteBenchSettings) -> dict[str, Path]:
    """Return the file of each task.

    Raises:
        DataError: one that was asked for is not there, or none is.
    """
    data = Path(settings.data)
    found = {name: data / f"{name}.jsonl" for name in settings.tasks or SCORES}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing and (settings.tasks is not None or len(missing) == len(found)):
        raise DataError(f"{data}: has no {missing[0]}; give the folder with the published files")
    return {name: path for name, path in found.items() if path.is_file()}


def read_samples(settings: InfiniteBenchSettings, files: Mapping[str, Path]) -> Iterator[Sample]:
    """Read the questions of all tasks.

    Raises:
        DataError: a file is not as published.
    """
    published = published_prompts()[TASK]
    prompts = published["chat" if settings.chat else "completion"]
    for task, path in files.items():
        most = published["max_new_tokens"][task]
        most = max(most, _CHAT_MAX_NEW_TOKENS) if settings.chat else most
        for number, row in enumerate(read_rows(path, settings.limit), start=1):
            place = f"{path} row {number}"
            yield Sample(
                id=f"{task}-{row.get('id', number)}",
                labels={"name": task},
                prompt=prompts[task].format(**_words(task, row, place)),
                target=_target(task, row, place),
                max_new_tokens=most,
            )


def _words(task: str, row: Row, place: str) -> dict[str, str]:
    """Return what the prompts of a task name."""
    question = str(row.get("input") or row.get("question") or "")
    words = {"context": str(field_of(row, "context", place))}
    words |= {"input": question, "question": question}
    if task in ("code_debug", "longbook_choice_eng"):
        options = field_of(row, "options", place)
        words |= {f"OPTION_{letter}": str(options[i]) for i, letter in enumerate(_CHOICES)}
    if task == "code_run":
        call = _found(r"func_[0-9]+\(-?[0-9]+\)", question, place)
        words |= {"func_call": call, "func": call.partition("(")[0]}
    if task == "math_find":
        sought = _found(r"The .+ of", question, place)[: -len(" of")].lower()
        words["prefix"] = f"What is {sought} in the following list?"
    return words


def _found(pattern: str, text: str, place: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise DataError(
            f"{place}: input {text[:80]!r} does not hold {pattern!r}; give the published file"
        )
    return match.group()


def _target(task: str, row: Row, place: str) -> Any:
    """Return the right answer: [text, letter] where there are options, else what the file has."""
    answer = field_of(row, "answer", place)
    if task not in ("code_debug", "longbook_choice_eng"):
        return answer
    texts: list[Any] = answer if isinstance(answer, list) else [answer]
    if len(texts) == 2 and texts[1] in _CHOICES:
        return texts
    options = field_of(row, "options", place)
    if len(texts) != 1 or texts[0] not in options:
        raise DataError(
            f"{place}: answer {answer!r} is none of the options; give the published file"
        )
    return [texts[0], _CHOICES[options.index(texts[0])]]


# --------------------------------------------------------------------------------- scores


def _first(target: Any) -> Any:
    return target[0] if isinstance(target, list) else target


def _words_of(answer: str, marks: str) -> list[str]:
    return answer.translate(str.maketrans(marks, " " * len(marks))).split()


def _key_value(answer: str, target: Any) -> float:
    return float(_first(target) in _words_of(answer, _QUOTES))


def _first_number(answer: str, target: Any) -> float:
    found = re.search(r"[0-9]+", answer)
    return float(found is not None and found.group() == str(_first(target)))


def _last_number(answer: str, target: Any) -> float:
    words = _words_of(answer.strip(), "\n.`'\":")
    return float(
        bool(words) and words[-1].lstrip("+-").isdigit() and int(words[-1]) == int(_first(target))
    )


def _number(answer: str, target: Any) -> float:
    found = re.search(r"\d+\.\d+|\d+", answer)
    target = _first(target)
    if found is None or (isinstance(target, int) and "." in found.group()):
        return 0.0
    return float(float(found.group()) == float(target))


def _speaker(answer: str, target: Any) -> float:
    return float(_first(target) in [word.upper() for word in _words_of(answer, _QUOTES)])


def _after_prefix(answer: str, prefixes: Sequence[str]) -> str | None:
    """Return what follows the first prefix that the answer holds, one character left out."""
    for prefix in prefixes:
        _, found, after = answer.partition(prefix)
        if found:
            return after[1:]
    return None


def _choice(answer: str, target: Any) -> float:
    answer = answer.strip()
    if not answer or answer[0] in _CHOICES:
        return float(bool(answer) and answer[0] in target)
    if answer in target:
        return 1.0
    words = _words_of(answer, "\n\"'.,?!{}")
    after = _after_prefix(" ".join(words), ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return float(any(after.startswith(text) for text in target))
    return float(next((word in target for word in words if word in _CHOICES), False))


def _bug(answer: str, target: Any) -> float:
    answer = answer.strip()
    function, letter = target
    if answer[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    for word in (*"\n`'\"-*", "Option", "option"):
        answer = answer.replace(word, " ")
    answer = re.sub(" +", " ", answer)
    after = _after_prefix(answer, ("answer is:", "is:", "answer:", "correct option is:"))
    return float(after is not None and after.startswith((letter, function)))


def _steps(answer: str, target: Any) -> float:
    """Return the share of intermediate values before the first wrong one."""
    values = target[0] if isinstance(target[0], list) else target
    said = [int(number) for number in re.findall(r"[0-9]+", answer)]
    right = [one == other for one, other in zip(values, said, strict=False)]
    return (right.index(False) if False in right else len(right)) / len(values)


def _english_f1(answer: str, target: Any) -> float:
    texts = target if isinstance(target, list) else [target]
    return max((token_f1(words(answer), words(text)) for text in texts), default=0.0)


def _chinese_f1(answer: str, target: Any) -> float:
    texts = target if isinstance(target, list) else [target]
    said = characters_zh(answer)
    return max((token_f1(said, characters_zh(text)) for text in texts), default=0.0)


def _summary(answer: str, target: Any) -> float:
    texts = target if isinstance(target, list) else [target]
    return max((rouge_lsum(answer, text) for text in texts), default=0.0)


SCORES: dict[str, Callable[[str, Any], float]] = {
    "passkey": _first_number,
    "number_string": _first_number,
    "kv_retrieval": _key_value,
    "longdialogue_qa_eng": _speaker,
    "longbook_sum_eng": _summary,
    "longbook_choice_eng": _choice,
    "longbook_qa_eng": _english_f1,
    "longbook_qa_chn": _chinese_f1,
    "math_find": _number,
    "math_calc": _steps,
    "code_run": _last_number,
    "code_debug": _bug,
}


def evaluate_infinitebench(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: InfiniteBenchSettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Ask every question; write infinitebench.json, .csv and .png.

    Every answer is kept in infinitebench.trials.jsonl: started again after a kill, this goes on.

    A cell is {name, n, mean, low, high}, one for each task; a mean is accuracy, F1 (longbook_qa)
    or ROUGE-Lsum (longbook_sum). `summary` holds the mean of the tasks' means.

    Returns:
        the document in infinitebench.json.

    Raises:
        SkipalignError: data that is not as published, or a model that cannot be asked.
    """
    files = find_files(settings)
    asker = Asker(generator, tokenizer, settings, chat=settings.chat)
    digest = sha256_of(files.values())
    log = asker.log(Path(out), TASK, digest)
    with progress.bar(TASK, num_rows(files.values(), settings.limit)) as bar:
        rows = asker.ask(read_samples(settings, files), _score, log, bar)
    cells = [{"name": task, **mean_score(each)} for (task,), each in grouped(rows, "name").items()]
    return write_suite(
        Path(out),
        TASK,
        _COLUMNS,
        settings=settings,
        data_sha256=digest,
        cells=cells,
        summary={
            **counts(rows),
            "num_tasks": len(cells),
            "mean_of_tasks": sum(cell["mean"] for cell in cells) / len(cells),
        },
    )


def _score(sample: Sample, answer: str) -> float:
    return SCORES[sample.labels["name"]](answer, sample.target)
