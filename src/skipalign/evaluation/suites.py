"""Published benchmarks from local files: prompts asked, predictions kept, each sample scored once.

A benchmark reads its own files into samples and scores an answer; here is what they share. A prompt
that is too long loses its middle, then the chat template goes around it, answers are greedy, and
every answer is a line of NAME.trials.jsonl: started again after a kill, what has a line is
not asked again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int

from skipalign.conversation import Message
from skipalign.errors import DataError, ModelError, RecipeError
from skipalign.evaluation import thought_is_open, write_results
from skipalign.evaluation.metrics import bootstrap_nested, bootstrap_within, share
from skipalign.evaluation.trial_log import TrialLog
from skipalign.generation import Generator, answers_of, tokens_at_once
from skipalign.progress import Bar
from skipalign.template import Template
from skipalign.tokens import DataTokenizer, DropError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INTERVALS = 0x5317E
_MARK = "THE-PROMPT-GOES-HERE"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """What samples of any kind are asked with.

    Args:
        template_kwargs: what the chat template takes, such as `enable_thinking`.
    """

    template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(AskSettings):
    """What every benchmark that lies in files is asked with.

    Args:
        data: the published files: a folder, or the file where there is one.
        max_prompt_tokens: a longer prompt loses its middle, before the chat template; None leaves
            all of them whole.
        limit: only so many samples of each file; None takes all.
        template_kwargs: what the chat template takes, such as `enable_thinking`.
    """

    data: str
    max_prompt_tokens: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raises RecipeError for limits that leave nothing."""
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 2:
            raise RecipeError(
                f"max_prompt_tokens is {self.max_prompt_tokens}; it must be at least 2"
            )
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"limit is {self.limit}; it must be at least 1, or none at all")


@dataclass(frozen=True, slots=True)
class Sample:
    """One question of a benchmark.

    Attributes:
        id: its name among the trials, unlike all others.
        labels: what its score is averaged by, such as task and context length.
        prompt: the user's message as published.
        target: the right answer, as JSON holds it.
        max_new_tokens: the longest answer.
        system: a system message; "" is none.
        answer_start: stands after the chat template, and the answer goes on from it.
    """

    id: str
    labels: dict[str, Any]
    prompt: str
    target: Any
    max_new_tokens: int
    system: str = ""
    answer_start: str = ""


class Asker:
    """Puts samples to a model.

    Args:
        generator: the model.
        tokenizer: its tokenizer.
        settings: of the benchmark.
        chat: whether the chat template goes around a prompt; without it a prompt is plain text
            to be continued, after BOS where the tokenizer adds one.

    Raises:
        ModelError: the tokenizer or its template cannot be used.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: "PreTrainedTokenizerBase",
        settings: AskSettings,
        *,
        chat: bool = True,
    ) -> None:
        self.generator, self.tokenizer, self.settings = generator, tokenizer, settings
        in_files = isinstance(settings, SuiteSettings)
        self._place = settings.data if in_files else type(settings).__name__
        self._max_prompt_tokens = settings.max_prompt_tokens if in_files else None
        self._texts = DataTokenizer(tokenizer)
        self._template = (
            Template(tokenizer, self._texts, settings.template_kwargs) if chat else None
        )
        self._ends: dict[str, tuple[str, str]] = {}

    def log(self, out: Path, name: str, data_sha256: str) -> TrialLog:
        """Open NAME.trials.jsonl, which says in its first line what answers depend on.

        Raises:
            RunError: it holds answers of another model, to other data or with other settings.
        """
        settings = {key: value for key, value in asdict(self.settings).items() if key != "data"}
        header = {
            "model": self.generator.identity,
            "data_sha256": data_sha256,
            "settings": json.loads(json.dumps(settings)),
            "template": self._template.text if self._template else None,
        }
        out.mkdir(parents=True, exist_ok=True)
        return TrialLog(out / f"{name}.trials.jsonl", header, ("id",), overwrite=False)

    def tokens(self, sample: Sample) -> tuple[Int[np.ndarray, " T"], bool]:
        """Return the tokens of a whole prompt, and whether it was cut.

        Raises:
            DataError: the tokenizer makes special tokens of the prompt's ordinary text.
        """
        prompt, was_cut = self._cut(sample.prompt)
        head, tail = self._around(sample.system)
        text = head + prompt + tail + sample.answer_start
        span = (len(head), len(head) + len(prompt))
        try:
            ids = self._texts.as_data(text, [span], self._texts.tokenize([text])[0]).ids
        except DropError as error:
            raise DataError(f"sample {sample.id}: {error.detail}") from None
        if self._template is None and self._texts.adds_bos():
            ids = np.concatenate([[cast(int, self.tokenizer.bos_token_id)], ids])
        return ids.astype(np.int64), was_cut

    def _cut(self, prompt: str) -> tuple[str, bool]:
        """Take out the middle of a prompt that is too long, as LongBench does.

        Source: THUDM/LongBench, pred.py: half of the tokens from each end, decoded again.
        """
        limit = self._max_prompt_tokens
        if limit is None or len(prompt.encode()) < limit:  # a token is a byte at least
            return prompt, False
        ids = cast("list[int]", self.tokenizer(prompt, verbose=False)["input_ids"])
        if len(ids) <= limit:
            return prompt, False
        kept = ids[: limit // 2] + ids[limit // 2 - limit :]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True)), True

    def _around(self, system: str) -> tuple[str, str]:
        """Return what the chat template writes before and after the user's message."""
        if self._template is None:
            return system, ""
        if system not in self._ends:
            messages = [Message("system", system)] if system else []
            try:
                text = self._template.render([*messages, Message("user", _MARK)], prompt=True)
            except DropError as error:
                raise ModelError(
                    f"{error.detail}; the benchmark asks with a "
                    f"{'system and a ' if system else ''}user message, which the template must "
                    "take - mend tokenizer.chat_template"
                ) from None
            head, mark, tail = text.partition(_MARK)
            if not mark or _MARK in tail:
                raise ModelError(
                    "the chat template does not write the user's message once; a prompt needs it "
                    "once - use another template"
                )
            self._ends[system] = head, tail
        return self._ends[system]

    def ask(
        self,
        samples: Iterable[Sample],
        score: Callable[[Sample, str], float],
        log: TrialLog,
        bar: Bar,
    ) -> list[Row]:
        """Ask what was not asked yet; return a row for every sample, in order.

        A row is {id, **labels, prediction, target, score, num_tokens, was_cut}; a score is from
        0 to 1.

        Raises:
            DataError: two samples have one id, or there is none at all.
        """
        most = tokens_at_once(self.generator)
        ids: dict[str, None] = {}
        group: list[tuple[Sample, Int[np.ndarray, " T"], bool]] = []
        for sample in samples:
            if sample.id in ids:
                raise DataError(f"{self._place}: two samples have the id {sample.id!r}")
            ids[sample.id] = None
            if (sample.id,) in log.trials:
                bar.already(1)
                continue
            new = (sample, *self.tokens(sample))
            if group and not _fits(group, new, most):
                self._ask(group, score, log, bar)
                group = []
            group.append(new)
        if group:
            self._ask(group, score, log, bar)
        if not ids:
            raise DataError(f"{self._place}: holds no sample; give the published files")
        return [log.trials[name,] for name in ids]

    def _ask(
        self,
        group: Sequence[tuple[Sample, Int[np.ndarray, " T"], bool]],
        score: Callable[[Sample, str], float],
        log: TrialLog,
        bar: Bar,
    ) -> None:
        answers = answers_of(
            self.generator,
            cast("Sequence[Sequence[int]]", [ids for _, ids, _ in group]),
            max_new_tokens=group[0][0].max_new_tokens,
        )
        for index, answer in answers:
            sample, ids, was_cut = group[index]
            row: Row = {
                "id": sample.id,
                **sample.labels,
                "prediction": answer.text,
                "target": sample.target,
                "score": float(score(sample, answer.text)),
                "num_tokens": len(ids),
                "was_cut": was_cut,
            }
            log.append([row])
            bar.advance()


def _fits(
    group: Sequence[tuple[Sample, Int[np.ndarray, " T"], bool]],
    new: tuple[Sample, Int[np.ndarray, " T"], bool],
    most_tokens: int,
) -> bool:
    """Whether one more prompt may be asked together with a group."""
    num_tokens = sum(len(ids) for _, ids, _ in group) + len(new[1])
    return num_tokens <= most_tokens and new[0].max_new_tokens == group[0][0].max_new_tokens


# --------------------------------------------------------------------------------- scores


def accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """Return {n, correct, mean, low, high} of answers that are right or wrong."""
    return share(sum(row["score"] == 1 for row in rows), len(rows))


def mean_score(rows: Sequence[Row]) -> dict[str, Any]:
    """Return {n, mean, low, high} of scores from 0 to 1; the interval is a bootstrap over rows."""
    scores = [row["score"] for row in rows]
    low, high = bootstrap_nested([scores], np.random.default_rng(_INTERVALS))
    return {"n": len(scores), "mean": float(np.mean(scores)), "low": low, "high": high}


def mean_of_means(groups: Iterable[Sequence[Row]]) -> dict[str, Any]:
    """Return {n, mean, low, high} of the mean over groups, each weighing the same.

    The interval is a bootstrap over the rows of each group; the groups themselves are fixed.
    """
    scores = [[row["score"] for row in rows] for rows in groups]
    low, high = bootstrap_within(scores, np.random.default_rng(_INTERVALS))
    mean = float(np.mean([np.mean(each) for each in scores]))
    return {"n": sum(map(len, scores)), "mean": mean, "low": low, "high": high}


def by_length(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a document's scores by context length, all its subtasks together."""
    return list(document["by_length"])


def grouped(rows: Iterable[Row], *labels: str) -> dict[tuple[Any, ...], list[Row]]:
    """Group rows by their labels, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[label] for label in labels), []).append(row)
    return groups


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return what a reader of the scores must know of the samples."""
    return {
        "num_samples": len(rows),
        "num_cut": sum(row["was_cut"] for row in rows),
        "num_unclosed_think": sum(thought_is_open(row["prediction"]) for row in rows),
    }


def write_suite(
    out: Path,
    task: str,
    columns: Sequence[str],
    *,
    settings: AskSettings,
    data_sha256: str,
    **parts: Any,
) -> dict[str, Any]:
    """Write TASK.csv, TASK.png and TASK.json, which says what was asked of which data.

    Args:
        out: the folder.
        task: the benchmark's name.
        columns: the keys of a cell that are in the table.
        settings: of the benchmark.
        data_sha256: of the files that samples were read from.
        parts: `cells`, `summary` and what else the document holds.

    Returns:
        the document in TASK.json.
    """
    told = {**asdict(settings), "data_sha256": data_sha256}
    return write_results(out, {"task": task, "settings": told, **parts}, columns, draw_bars)


def draw_bars(document: Mapping[str, Any], path: Path) -> None:
    """Draw every cell and every entry of `summary` as a point with its interval."""
    from matplotlib.figure import Figure

    points = [(cell["name"], cell) for cell in document["cells"]]
    points += [
        (name, entry) for name, entry in document["summary"].items() if isinstance(entry, dict)
    ]
    figure = Figure(figsize=(7.0, 1.2 + 0.28 * len(points)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(points), 0, -1)
    means, lows, highs = ([point[key] for _, point in points] for key in ("mean", "low", "high"))
    axes.hlines(places, lows, highs, linewidth=3, alpha=0.4)
    axes.plot(means, places, "o")
    axes.set_yticks(places, [f"{name} (n {point['n']:,})" for name, point in points])
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.set_xlabel("score, 95% interval")
    axes.set_title(document["task"])
    figure.savefig(path, format="png", dpi=150)
