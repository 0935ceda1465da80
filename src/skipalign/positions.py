"""Example -> position ids: every strategy side by side.

A position id is the number that tells a model with rotary embeddings (RoPE) where a token stands.
Attention sees only differences of ids: a model that met no difference above 4,096 in training
cannot use one of 40,000. The remedy of this file: keep the row short, but let its ids skip, so
that eight tokens meet the distances of a hundred:

    tokens      <s> You are | Long document ... | Question?
    contiguous   0   1   2  |  3    4    5      |  6   7
    skip         0   1   2  | 41   42   43      | 96  97

A strategy is one class below with one method: `positions(example, rng)`. It returns T
integers, strictly increasing, all in [0, max_position). The order of tokens and what each may
attend to stay as they are: a skip moves a token away, it never hides one. The strategies differ
in two choices only: WHERE a skip may fall (the cuts) and HOW LONG it is (the gaps). P - T
positions are free, the budget.

                   WHERE a skip may fall                 HOW LONG it is
    Contiguous     nowhere: normal fine-tuning
    SkipAlign      borders of the conversation's blocks  a law of `laws.py` divides the budget
    PoSE           one or a few tokens, any              bias uniform in {the last one..budget}
    PoSEAtMarkers  listed tokens                         gap uniform in {0..budget that is left}
    Cream          after a head and before a tail        tail at the end, middle by a Gaussian
    LongRecipe     between sentences                     N slots of P - T + N, all choices alike
    Logo           between chunks of equal length        each chunk anywhere in a bin of its own
    RandPos        every token                           T ids of P, all choices alike

Shape letters: T tokens of a sample, P = max_position, K cuts, N candidates for a cut.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import DataError, RecipeError
from skipalign.laws import LAWS

_MOST_POSITIONS = 2**31 - 1
BORDERS = ("inner", "outer", "token", "all", "none")


def sample_rng(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Return the generator of one sample in one epoch.

    What a sample draws depends on these three values alone, so it is the same after a crash, on
    any number of workers or ranks, and in any order. Philox is keyed, not stepped: two keys give
    two independent streams.
    """
    name = f"{seed}\0{epoch}\0{sample_id}".encode()
    key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def place(
    num_tokens: int, cuts: Int[np.ndarray, " K"], gaps: Int[np.ndarray, " K"]
) -> Int[np.ndarray, " T"]:
    """Return 0..T-1 with `gaps[k]` left out before token `cuts[k]`; everything after it moves."""
    steps = np.ones(num_tokens, np.int64)
    steps[0] = 0
    steps[cuts] += gaps
    return np.cumsum(steps)


def drawing(positions: Int[np.ndarray, " T"], example: Example) -> str:
    """Return the ids in columns of four characters, with a bar between segments."""
    blocks = (positions[segment.start : segment.stop] for segment in example.segments)
    return " |".join("".join(f"{position:4d}" for position in block) for block in blocks)


# The eight tokens of every drawing in this file: a system text, a long document, a question's
# answer. Here every token is content, where a real template adds headers; token n has the id n,
# and a sentence begins inside the document.
EIGHT_TOKENS = Example(
    input_ids=np.arange(8),
    labels=np.where(np.arange(8) >= 6, np.arange(8), IGNORE_INDEX),
    segments=(
        Segment(0, 3, "system", 0, 3),
        Segment(3, 6, "user", 3, 6),
        Segment(6, 8, "assistant", 6, 8),
    ),
    breaks=np.array([5]),
    id="eight",
    source="drawing",
)


# ------------------------------------------------------------- where: the strategies


class Strategy(ABC):
    """A way to give a sample its position ids. `name` is its word in a recipe."""

    name: ClassVar[str]

    @abstractmethod
    def positions(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        """Draw the position ids of one sample.

        Args:
            example: the sample; where its skips fall may depend on its segments, on the `breaks`
                between its sentences, or on its token ids.
            rng: the sample's own generator (`sample_rng`).

        Raises:
            DataError: the sample has more tokens than `max_position`.
        """


@dataclass(frozen=True, kw_only=True)
class Contiguous(Strategy):
    """Leave the ids as they are, 0..T-1: normal fine-tuning.

    >>> print(drawing(Contiguous().positions(EIGHT_TOKENS, sample_rng(0, 0, "a")), EIGHT_TOKENS))
       0   1   2 |   3   4   5 |   6   7
    """

    name: ClassVar[str] = "contiguous"

    def positions(
        self,
        example: Example,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Int[np.ndarray, " T"]:
        return np.arange(len(example.input_ids), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class _Skipping(Strategy):
    """What all skipping strategies share: a range of positions and a share of samples that skip.

    Args:
        max_position: the ids lie in [0, max_position).
        skip_fraction: share of the samples that skip, in [0, 1]; the others keep 0..T-1.
    """

    max_position: int
    skip_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.max_position < 1:
            raise RecipeError(
                f"strategy {self.name}: max_position is {self.max_position}; it counts positions "
                "and must be at least 1 - use the context length that you train for"
            )
        for name, value in vars(self).items():
            if isinstance(value, int) and value > _MOST_POSITIONS:
                shown = f"{value:.4g}" if value < 10**300 else "over 1e+300"
                raise RecipeError(
                    f"strategy {self.name}: {name} is {shown}; it must be at "
                    f"most {_MOST_POSITIONS:,} - use the context length that you train for"
                )
        if not 0 <= self.skip_fraction <= 1:
            raise RecipeError(
                f"strategy {self.name}: skip_fraction is {self.skip_fraction}; it is the share of "
                "samples that skip and must lie in [0, 1]"
            )

    def positions(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        if num_tokens > self.max_position:
            raise DataError(
                f"a sample has {num_tokens:,} tokens, but strategy {self.name} has max_position "
                f"{self.max_position:,}; raise max_position or lower the source's max_tokens"
            )
        if rng.random() >= self.skip_fraction:
            return np.arange(num_tokens, dtype=np.int64)
        return self._skip(example, rng)

    @abstractmethod
    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        """Draw the ids of a sample that skips."""


@dataclass(frozen=True, kw_only=True)
class SkipAlign(_Skipping):
    """Skip at the borders of the conversation's own blocks.

    >>> skip = SkipAlign(max_position=100, skip_fraction=1.0)
    >>> print(drawing(skip.positions(EIGHT_TOKENS, sample_rng(0, 0, "b")), EIGHT_TOKENS))
       0   1   2 |   9  10  11 |  95  96

    Block k keeps its inner order and moves by a cumulative bias u_k = u_(k-1) + s_k, s_k >= 0:
    a message is never torn, and the distance between a question and its document becomes that of
    a long context.

    Args:
        max_position: the ids lie in [0, max_position).
        skip_at: which borders may skip. `inner`: an instruction and its response (Skip-Inner);
            `outer`: a response and the next turn (Skip-Outer); `all`: every block border, also
            that of a system text (Skip-All, and the default); `token`: any token, the other
            reading of "skip everywhere"; `none`: no border, for `cuts_within` alone.
        skip_fraction: share p of the samples that skip.
        law: how the free positions are divided over the cuts; a key of `LAWS`.
        cuts_within: number of further cuts inside the blocks' texts, for blocks so long that
            distances inside them count as well.
        cut_at: where those fall: `sentence` prefers the beginnings of sentences and paragraphs
            and takes random tokens only where there are too few; `token` takes any.

    Source: Wu et al. 2024, arXiv 2405.03939: the blocks, the cumulative bias, the three modes, as
        a published review of the paper gives them.
    Differs: p, max_position, the law of the skips and their hyper-parameters are not published;
        the defaults here are our choice. `cuts_within` and `token` are ours. No cut falls inside
        a template's header or end-of-turn: `<|user|>` means nothing apart from its message.
    """

    name: ClassVar[str] = "skipalign"
    skip_fraction: float = 0.5
    skip_at: tuple[str, ...] = ("all",)
    law: str = "stars_and_bars"
    cuts_within: int = 0
    cut_at: str = "sentence"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_known("skip_at", self.skip_at, BORDERS)
        _require_known("law", (self.law,), tuple(LAWS))
        _require_known("cut_at", (self.cut_at,), ("sentence", "token"))
        if self.cuts_within < 0:
            raise RecipeError(
                f"strategy skipalign: cuts_within is {self.cuts_within}; it must be 0 or more cuts"
            )

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        cuts = block_borders(example.segments, self.skip_at)
        if "token" in self.skip_at:
            cuts = np.union1d(cuts, tokens_within(example.segments))
        elif self.cuts_within:
            cuts = np.union1d(cuts, self._draw_within(example, rng))
        if not len(cuts):
            return np.arange(num_tokens, dtype=np.int64)
        gaps = LAWS[self.law].gaps(self.max_position - num_tokens, len(cuts), rng)
        return place(num_tokens, cuts, gaps)

    def _draw_within(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " K"]:
        """Draw `cuts_within` different cuts inside contents, or as many as there are."""
        chosen = np.zeros(0, np.int64)
        if self.cut_at == "sentence":
            chosen = _draw_some(example.breaks, self.cuts_within, rng)
        missing = self.cuts_within - len(chosen)
        if missing:
            others = tokens_within(example.segments)
            others = others[~np.isin(others, chosen)] if len(chosen) else others
            chosen = np.concatenate([chosen, _draw_some(others, missing, rng)])
        return chosen


@dataclass(frozen=True, kw_only=True)
class PoSE(_Skipping):
    """Cut the sample into a few chunks anywhere and move each by its own bias.

    >>> pose = PoSE(max_position=100)
    >>> print(drawing(pose.positions(EIGHT_TOKENS, sample_rng(0, 0, "f")), EIGHT_TOKENS))
       0   1   2 |   3  53  54 |  55  56

    Chunk 0 stays; chunk i moves by u_i, uniform in {u_(i-1)..P - T}.

    Args:
        max_position: P; the ids lie in [0, P).
        num_chunks: N; a sample of fewer tokens has as many chunks as tokens.
        skip_fraction: share of the samples that skip.

    Source: Zhu et al. 2023, arXiv 2309.10400, section 3; for two chunks the first has a length
        uniform in {1..(T + 1) // 2}, as in the authors' code.
    Differs: for more chunks than two the borders are drawn uniformly (our choice);
        `skip_fraction` is ours, 1 is the paper's.
    """

    name: ClassVar[str] = "pose"
    num_chunks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chunks < 2:
            raise RecipeError(
                f"strategy pose: num_chunks is {self.num_chunks}; a skip needs 2 or more chunks"
            )

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        if num_tokens == 1:
            return np.zeros(1, np.int64)
        if self.num_chunks == 2:
            cuts = rng.integers(1, (num_tokens + 1) // 2 + 1, size=1)
        else:
            num_cuts = min(self.num_chunks, num_tokens) - 1
            cuts = np.sort(rng.choice(num_tokens - 1, num_cuts, replace=False)) + 1
        budget = self.max_position - num_tokens
        bias = np.zeros(len(cuts) + 1, np.int64)
        for chunk in range(1, len(bias)):
            bias[chunk] = rng.integers(bias[chunk - 1], budget + 1)
        return place(num_tokens, cuts, np.diff(bias))


@dataclass(frozen=True, kw_only=True)
class PoSEAtMarkers(_Skipping):
    """Skip before every token of a list, such as the one that begins a turn.

    >>> pose = PoSEAtMarkers(max_position=100, markers=(3, 5))
    >>> print(drawing(pose.positions(EIGHT_TOKENS, sample_rng(0, 0, "e")), EIGHT_TOKENS))
       0   1   2 |  31  32  90 |  91  92

    Each gap is uniform in {0..what the gaps before it left of P - T}, so that their means halve.

    Args:
        max_position: P; the ids lie in [0, P).
        markers: token ids; a sample without any of them keeps 0..T-1.
        skip_fraction: share of the samples that skip.

    Source: axolotl, `use_pose` with `pose_split_on_token_ids`. A sample's first marker cuts nothing
        where it is one of the first two tokens, as there.
    Differs: `skip_fraction` is ours, 1 is axolotl's. Its other mode, equal chunks where no token
        is listed, is not here: `PoSE` has chunks.
    """

    name: ClassVar[str] = "pose_markers"
    markers: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.markers or min(self.markers) < 0:
            raise RecipeError(
                f"strategy pose_markers: markers are {list(self.markers)}; they are token ids, at "
                "least one, 0 or more - list the ids before which a skip may fall"
            )

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        cuts = np.flatnonzero(np.isin(example.input_ids, self.markers))
        if len(cuts) and cuts[0] < 2:
            cuts = cuts[1:]
        gaps = LAWS["sequential"].gaps(self.max_position - num_tokens, len(cuts), rng)
        return place(num_tokens, cuts, gaps)


@dataclass(frozen=True, kw_only=True)
class Cream(_Skipping):
    """Keep a head at the start, put a tail at the end, and between them a middle.

    >>> cream = Cream(max_position=100)
    >>> print(drawing(cream.positions(EIGHT_TOKENS, sample_rng(0, 0, "e")), EIGHT_TOKENS))
       0   1  22 |  23  24  25 |  98  99

    Head and tail have h tokens each, with equal probability T // 3 or, so that the middle is long
    and hardly torn, 4 P / T. The middle has the other m = T - 2 h. A factor a is normal with mean
    1 + P / T and deviation `std`, clipped to [2, 2 P / T], rounded down; the middle's last id is
    uniform in {h + (m - 1) a / 2 .. T a / 2 - h - 1}. So it lies mostly in the middle of the range.

    Args:
        max_position: P; the ids lie in [0, P), and a sample that skips ends at P - 1.
        std: deviation of a, in halves of a sample's length.
        skip_fraction: share of the samples that skip.

    Source: Wu, Zhao, Zheng 2024, arXiv 2406.07138; the rule to the integer as in the authors' code,
        which clips the Gaussian that the paper calls truncated.
    Differs: T is each sample's own length, not the model's window, and h is T // 3 at most, or
        nothing would be left of the middle where P is large. A sample of fewer than three tokens
        keeps 0..T-1. `skip_fraction` is ours, 1 is the paper's.
    """

    name: ClassVar[str] = "cream"
    std: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std < 0:
            raise RecipeError(
                f"strategy cream: std is {self.std}; it is the deviation of where the middle ends, "
                "in halves of a sample's length, and must be 0 or more"
            )

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        if num_tokens < 3:
            return np.arange(num_tokens, dtype=np.int64)
        scale = self.max_position / num_tokens
        short = rng.random() < 0.5
        head = min(int(4 * scale), num_tokens // 3) if short else num_tokens // 3
        middle = num_tokens - 2 * head
        half = np.floor(np.clip(rng.normal(1 + scale, self.std), 2, 2 * scale)) / 2
        lowest = int(head + (middle - 1) * half)
        highest = int(num_tokens * half) - head - 1
        skipped = int(rng.integers(lowest, highest + 1)) - (head + middle - 1)
        gaps = np.array([skipped, self.max_position - num_tokens - skipped])
        return place(num_tokens, np.array([head, head + middle]), gaps)


@dataclass(frozen=True, kw_only=True)
class LongRecipe(_Skipping):
    """Skip between sentences, the free positions spread over all of them.

    >>> recipe = LongRecipe(max_position=100)
    >>> print(drawing(recipe.positions(EIGHT_TOKENS, sample_rng(0, 0, "c")), EIGHT_TOKENS))
       0   1   2 |  15  16  49 |  73  74

    The N sentences of a sample and its P - T free positions are P - T + N slots; which N of them
    hold the sentences is drawn, all choices alike, and then the first sentence moves to slot 0.
    So the gap before the second sentence is on average twice as long as each of the others, and as
    much as one of those is left over behind the last.

    Args:
        max_position: P; the ids lie in [0, P).
        skip_fraction: share of the samples that skip.

    Source: Hu et al. 2024, arXiv 2409.00509, section 4.2: whole sentences, the first at 0, random
        gaps; the law of the gaps as in the authors' code.
    Differs: sentences begin at the sample's `breaks` and at every block; the authors end them at
        certain tokens of Llama's. Their training script lets a first part of random length keep
        0, 1, 2, ...; the paper does not, nor do we. `skip_fraction` is ours, 1 is the paper's.
    """

    name: ClassVar[str] = "longrecipe"

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        cuts = np.union1d(block_borders(example.segments, ["all"]), example.breaks)
        num_slots = self.max_position - num_tokens + len(cuts) + 1
        slots = rng.choice(num_slots, len(cuts) + 1, replace=False, shuffle=False)
        slots.sort()
        slots[0] = 0
        return place(num_tokens, cuts, np.diff(slots) - 1)


@dataclass(frozen=True, kw_only=True)
class Logo(_Skipping):
    """Cut the context into chunks of equal length, each placed in a bin of its own.

    >>> logo = Logo(max_position=100, chunk_tokens=3)
    >>> print(drawing(logo.positions(EIGHT_TOKENS, sample_rng(0, 0, "h")), EIGHT_TOKENS))
      42  43  44 |  55  56  57 |  98  99

    Of the P - T free positions every one of the N chunks gets e = (P - T) // N. Chunk j moves by
    j e + b, b uniform in {0..e}; in a sparse sample every token has a b of its own, in rising order
    within the chunk. The last question and its answer are no chunk; they end at P - 1.

    Args:
        max_position: P; the ids lie in [0, P), and a sample that skips ends at P - 1.
        chunk_tokens: length of a chunk, the last may be shorter; less than the paper's 512 where a
            sample is short.
        sparse_fraction: share of the skipping samples that are sparse, in [0, 1].
        skip_fraction: share of the samples that skip.

    Source: Tang et al. 2024, arXiv 2410.18533, section 3.2.2 (positional indices synthesis) and
        appendix D: chunks, uniform bias, nine continuous samples to one sparse one.
    Differs: bins are our reading; equation 4 alone, b uniform in {1..j e}, can put a chunk before
        the one it follows. Question and answer, which the equation leaves out, are the last turn
        here, and of a single turn, whose question holds the context, the answer. `skip_fraction`
        is ours, 1 is the paper's.
    """

    name: ClassVar[str] = "logo"
    chunk_tokens: int = 512
    sparse_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_tokens < 1:
            raise RecipeError(
                f"strategy logo: chunk_tokens is {self.chunk_tokens}; a chunk has 1 or more tokens"
            )
        if not 0 <= self.sparse_fraction <= 1:
            raise RecipeError(
                f"strategy logo: sparse_fraction is {self.sparse_fraction}; it is the share of "
                "samples whose tokens skip one by one and must lie in [0, 1]"
            )

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        budget = self.max_position - num_tokens
        context = last_turn(example.segments)
        chunk = np.arange(context) // self.chunk_tokens
        num_chunks = int(chunk[-1]) + 1
        spread = budget // num_chunks
        if rng.random() < self.sparse_fraction:
            bias = rng.integers(spread + 1, size=context)
        else:
            bias = rng.integers(spread + 1, size=num_chunks)[chunk]
        ids = np.arange(num_tokens, dtype=np.int64)
        # No bias of a chunk is above one of the next, so sorting orders tokens within their chunks.
        ids[:context] += np.sort(chunk * spread + bias)
        ids[context:] += budget
        return ids


@dataclass(frozen=True, kw_only=True)
class RandPos(_Skipping):
    """Give the T tokens T different ids of the whole range, sorted: a cut at every token.

    >>> randpos = RandPos(max_position=100)
    >>> print(drawing(randpos.positions(EIGHT_TOKENS, sample_rng(0, 0, "a")), EIGHT_TOKENS))
       1  22  42 |  46  61  71 |  78  94

    Args:
        max_position: the ids lie in [0, max_position); the first is drawn as well.
        skip_fraction: share of the samples that skip.

    Source: Ruoss et al. 2023, arXiv 2305.16843, section 3.
    Differs: `skip_fraction` is ours, 1 is the paper's.
    """

    name: ClassVar[str] = "randpos"

    def _skip(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        ids = rng.choice(self.max_position, len(example.input_ids), replace=False, shuffle=False)
        return np.sort(ids).astype(np.int64)


STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (Contiguous, SkipAlign, PoSE, PoSEAtMarkers, Cream, LongRecipe, Logo, RandPos)
}


# ------------------------------------------------------------- where: the candidates of a cut


def block_borders(segments: Sequence[Segment], skip_at: Sequence[str]) -> Int[np.ndarray, " K"]:
    """Return the first tokens of the segments before which `skip_at` lets a skip fall."""
    cuts: list[int] = []
    for before, after in pairwise(segments):
        inner = after.role == "assistant" and before.role != "assistant"
        outer = before.role == "assistant"
        if "all" in skip_at or (inner and "inner" in skip_at) or (outer and "outer" in skip_at):
            cuts.append(after.start)
    return np.array(cuts, np.int64)


def tokens_within(segments: Sequence[Segment]) -> Int[np.ndarray, " N"]:
    """Return the tokens strictly inside contents, before which no template token is torn off."""
    insides = [np.arange(s.content_start + 1, s.content_stop) for s in segments]
    return np.concatenate(insides)


def last_turn(segments: Sequence[Segment]) -> int:
    """Return the token with which the last turn begins, or a single turn's answer.

    It is T where there is neither, or nothing before it.
    """
    questions = [segment.start for segment in segments if segment.role == "user"]
    answers = [segment.start for segment in segments if segment.role == "assistant"]
    starts = questions[-1:] if len(questions) > 1 else answers[-1:]
    return next((start for start in starts if start), segments[-1].stop)


def _draw_some(
    candidates: Int[np.ndarray, " N"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " K"]:
    return rng.choice(candidates, min(count, len(candidates)), replace=False)


def _require_known(field: str, found: Sequence[str], known: Sequence[str]) -> None:
    for value in found:
        if value not in known:
            raise RecipeError(
                f"strategy skipalign: {field} holds {value!r}; it takes {', '.join(known)}"
            )
