"""Perplexity of natural text by context length: what more context is worth to a model.

    text      ... It is a truth universally acknowledged, that a single man ...
    256                                  [ context           | scored ]
    512                [ context                             | scored ]

A window of every length ends at each of a few places drawn from the text, and its last `stride`
tokens are scored: the same tokens at every length, so lengths differ by context alone. It is
plain text: no chat template, natural positions, BOS first where the tokenizer adds one.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float, Int

from skipalign.errors import DataError, ModelError, RecipeError
from skipalign.evaluation import write_results
from skipalign.evaluation.haystack import read_haystack
from skipalign.evaluation.metrics import bootstrap_nested
from skipalign.progress import Bar, Progress, Silent
from skipalign.tokens import DataTokenizer, DropError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from skipalign.generation import Generator, LikelihoodGenerator

TASK = "perplexity"
UNIT = "nats per token"
# Windows that the backend is given at once; the bar moves after each such group.
_WINDOWS_AT_ONCE = 64
_MOST_NATS = 700.0
_FIRST_BUCKET = 16  # positions; every further bucket doubles the reach
_PLACES, _INTERVALS = 0x9E12, 0x9E13  # parts the streams of draws that begin with one seed
_COLUMNS = ("context_length", "n", "mean", "low", "high", "perplexity")
_SILENT = Silent()


@dataclass(frozen=True, kw_only=True)
class PerplexitySettings:
    """The windows and the text.

    Args:
        lengths: tokens of a window, scored ones and BOS included.
        documents: windows of each length, the same places for all; without overlap where the
            text is long enough, else spread evenly. Scored tokens never overlap.
        stride: tokens scored at the end of each window.
        sliding_window: also score the whole text, every token once, in windows of so many tokens
            that move on by `stride`; None does not.
        seed: of the places.
        haystack: a text file or a folder of *.txt, read in sorted order; None is the built-in
            public-domain prose. White space is collapsed.
    """

    lengths: tuple[int, ...]
    documents: int = 32
    stride: int = 64
    sliding_window: int | None = None
    seed: int = 0
    haystack: str | None = None

    def __post_init__(self) -> None:
        """Raises RecipeError for windows that cannot be."""
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise RecipeError(
                f"lengths are {list(self.lengths)}; give unlike numbers of tokens, at least one"
            )
        if self.documents < 1 or self.seed < 0:
            raise RecipeError(
                f"documents are {self.documents}, seed is {self.seed}; they must be at least 1 "
                "and 0"
            )
        windows = (*self.lengths, *([self.sliding_window] if self.sliding_window else ()))
        if not 1 <= self.stride < min(windows):
            raise RecipeError(
                f"stride is {self.stride} for windows of {min(windows)} tokens; it must be from 1 "
                f"to {min(windows) - 1}, as a token is scored from what is before it"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """The text as tokens, and what begins every window: BOS or nothing."""

    ids: Int[np.ndarray, " N"]
    start: Int[np.ndarray, " S"]
    sha256: str

    def window(self, stop: int, length: int) -> Int[np.ndarray, " T"]:
        """Return the window of `length` tokens that ends before token `stop` of the text."""
        first = max(0, stop - (length - len(self.start)))
        return np.concatenate([self.start, self.ids[first:stop]])


def read_text(tokenizer: "PreTrainedTokenizerBase", haystack: str | None) -> Text:
    """Read and tokenise the text; the text of a special token becomes ordinary tokens.

    Raises:
        DataError: see `read_haystack`; or a tokenizer that makes special tokens of any text.
        ModelError: the tokenizer has no character offsets.
    """
    text = read_haystack(haystack)
    tokens = DataTokenizer(tokenizer)
    try:
        ids = tokens.as_data(text, [(0, len(text))], tokens.tokenize([text])[0]).ids
    except DropError as error:
        raise DataError(f"haystack {haystack}: {error.detail}") from None
    start = [tokenizer.bos_token_id] if tokens.adds_bos() else []
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Text(ids.astype(np.int64), np.array(start, dtype=np.int64), digest)


def draw_stops(num_tokens: int, settings: PerplexitySettings) -> Int[np.ndarray, " D"]:
    """Draw where the windows end: a pure function of text length and settings, ascending.

    Raises:
        DataError: the text is too short for windows whose scored tokens do not overlap.
    """
    longest, num = max(settings.lengths), settings.documents
    least = longest + (num - 1) * settings.stride
    if num_tokens < least:
        raise DataError(
            f"haystack {settings.haystack or '(built-in prose)'}: it has {num_tokens:,} tokens of "
            f"this tokenizer; {num} documents with windows of up to {longest:,} tokens and "
            f"{settings.stride} scored need {least:,} - give a longer text, or fewer documents or "
            "shorter lengths"
        )
    room = (num_tokens - longest) // max(1, num - 1)
    apart = min(longest, room)
    spare = num_tokens - longest - (num - 1) * apart
    rng = np.random.default_rng([settings.seed, _PLACES])
    shifts = np.sort(rng.integers(spare + 1, size=num))
    return longest + np.arange(num) * apart + shifts


def check_perplexity(tokenizer: "PreTrainedTokenizerBase", settings: PerplexitySettings) -> None:
    """Draw where the windows end.

    Raises:
        SkipalignError: a text that is missing or too short.
    """
    text = read_text(tokenizer, settings.haystack)
    draw_stops(len(text.ids), settings)
    _sliding_stops(text, settings)


def evaluate_perplexity(
    generator: "Generator",
    tokenizer: "PreTrainedTokenizerBase",
    settings: PerplexitySettings,
    out: Path,
    progress: Progress = _SILENT,
) -> dict[str, Any]:
    """Score the text at every length; write perplexity.json, perplexity.csv and perplexity.png.

    A cell is {context_length, n, mean, perplexity, low, high, values}: `mean` is in nats per
    token, `values` are those of the n documents, `low` and `high` a bootstrap over documents.
    `buckets` are means by position within the longest windows, all of whose tokens are scored:
    {start, stop, n, mean, perplexity, low, high} for positions start to stop - 1. `sliding` is
    the whole text {context_length, stride, num_tokens, n, mean, perplexity, low, high}, or None;
    its n blocks of about `stride` tokens are what its interval is drawn over.

    Returns:
        the document in perplexity.json.

    Raises:
        SkipalignError: a text that is missing or too short, or a backend without logits.
    """
    if not hasattr(generator, "log_likelihoods"):
        raise ModelError(
            f"{type(generator).__name__} gives completions alone; perplexity needs the likelihood "
            "of a given text - evaluate with the transformers backend"
        )
    scorer = cast("LikelihoodGenerator", generator)
    text = read_text(tokenizer, settings.haystack)
    stops = draw_stops(len(text.ids), settings)
    slid = _sliding_stops(text, settings)
    with progress.bar(TASK, total=len(stops) * len(settings.lengths) + len(slid)) as bar:
        cells, longest = _cells(scorer, text, stops, settings, bar)
        sliding = _slid(scorer, text, slid, settings, bar) if slid else None
    document = {
        "task": TASK,
        "settings": {**asdict(settings), "haystack_sha256": text.sha256},
        "unit": UNIT,
        "text": {
            "num_tokens": len(text.ids),
            "bos": bool(len(text.start)),
            "stops": stops.tolist(),
        },
        "cells": cells,
        "buckets": _buckets(longest, settings.seed),
        "sliding": sliding,
    }
    return write_results(Path(out), document, _COLUMNS, _draw)


def _cells(
    scorer: "LikelihoodGenerator",
    text: Text,
    stops: Int[np.ndarray, " D"],
    settings: PerplexitySettings,
    bar: Bar,
) -> tuple[list[dict[str, Any]], Float[np.ndarray, "D N"]]:
    """Return the cells, and the nats of every token but the first of the longest windows."""
    cells: list[dict[str, Any]] = []
    nats = np.empty((0, 0))
    for length in sorted(settings.lengths):
        windows = [text.window(int(stop), length) for stop in stops]
        start = 1 if length == max(settings.lengths) else length - settings.stride
        nats = np.stack(_nats(scorer, windows, [start] * len(windows), bar))
        values = nats[:, -settings.stride :].mean(axis=1).tolist()
        cells.append({"context_length": length, **_mean(values, settings.seed), "values": values})
    return cells, nats


def _nats(
    scorer: "LikelihoodGenerator",
    windows: Sequence[Int[np.ndarray, " T"]],
    starts: Sequence[int],
    bar: Bar,
) -> list[Float[np.ndarray, " N"]]:
    """Return minus the log-likelihoods of each window's tokens from its start on."""
    found: list[Float[np.ndarray, " N"]] = []
    for first in range(0, len(windows), _WINDOWS_AT_ONCE):
        some = slice(first, first + _WINDOWS_AT_ONCE)
        texts = cast("Sequence[Sequence[int]]", windows[some])
        found += [-row for row in scorer.log_likelihoods(texts, starts[some])]
        bar.advance(len(texts))
    return found


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    """Return {n, mean, perplexity, low, high}: a mean that never travels without its interval."""
    low, high = bootstrap_nested([values], np.random.default_rng([seed, _INTERVALS]))
    return {"n": len(values), **_with_perplexity(float(np.mean(values))), "low": low, "high": high}


def _with_perplexity(mean: float) -> dict[str, Any]:
    """Return {mean, perplexity}; no perplexity where it is more than a float holds."""
    return {"mean": mean, "perplexity": math.exp(mean) if mean < _MOST_NATS else None}


def _buckets(nats: Float[np.ndarray, "D N"], seed: int) -> list[dict[str, Any]]:
    """Return the means by position; column i holds position i + 1."""
    length = nats.shape[1] + 1
    edges = [1]
    while (reach := max(_FIRST_BUCKET, 2 * edges[-1])) < length:
        edges.append(reach)
    return [
        {
            "start": start,
            "stop": stop,
            **_mean(nats[:, start - 1 : stop - 1].mean(axis=1).tolist(), seed),
        }
        for start, stop in pairwise([*edges, length])
    ]


def _sliding_stops(text: Text, settings: PerplexitySettings) -> list[int]:
    """Return where the windows over the whole text end; none where it is not asked for.

    Raises:
        DataError: the text has fewer tokens than one window.
    """
    if settings.sliding_window is None:
        return []
    first, last = settings.sliding_window - len(text.start), len(text.ids)
    if last < first:
        raise DataError(
            f"haystack {settings.haystack or '(built-in prose)'}: it has {last:,} tokens of this "
            f"tokenizer, fewer than sliding_window {settings.sliding_window:,} - give a "
            "longer text or a shorter window"
        )
    return [*range(first, last, settings.stride), last]


def _slid(
    scorer: "LikelihoodGenerator",
    text: Text,
    stops: Sequence[int],
    settings: PerplexitySettings,
    bar: Bar,
) -> dict[str, Any]:
    """Score every token of the text once, in the first window that holds it."""
    length, stride = cast(int, settings.sliding_window), settings.stride
    nats: list[Float[np.ndarray, " N"]] = []
    before = 0
    for first in range(0, len(stops), _WINDOWS_AT_ONCE):
        some = stops[first : first + _WINDOWS_AT_ONCE]
        windows = [text.window(stop, length) for stop in some]
        new = np.diff([before, *some])
        starts = [max(1, len(each) - int(num)) for each, num in zip(windows, new, strict=True)]
        nats += _nats(scorer, windows, starts, bar)
        before = some[-1]
    scores = np.concatenate(nats)
    blocks = np.array_split(scores, max(1, len(scores) // stride))
    return {
        "context_length": length,
        "stride": stride,
        "num_tokens": len(scores),
        **_mean([float(block.mean()) for block in blocks], settings.seed),
        **_with_perplexity(float(scores.mean())),
    }


def _draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw nats per token by context length and by position, each with its interval as a band."""
    from matplotlib.figure import Figure

    settings, cells, buckets = (document[name] for name in ("settings", "cells", "buckets"))
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    lengths = [cell["context_length"] for cell in cells]
    starts = [bucket["start"] for bucket in buckets]
    for axes, places, rows in ((left, lengths, cells), (right, starts, buckets)):
        lows, means, highs = ([row[name] for row in rows] for name in ("low", "mean", "high"))
        axes.fill_between(places, lows, highs, alpha=0.25, linewidth=0, label="95% interval")
        axes.plot(places, means, marker="o")
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:,}" for place in places], rotation=45)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    left.set_ylabel(UNIT)
    left.set_xlabel("context length (tokens)")
    left.set_title(f"The same {settings['stride']} tokens, {cells[0]['n']} documents")
    left.legend(loc="best")
    right.set_xlabel("first position of a bucket")
    right.set_title(f"By position in windows of {lengths[-1]:,} tokens")
    figure.savefig(path, format="png", dpi=150)
