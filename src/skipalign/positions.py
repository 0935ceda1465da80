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
in two choices only: WHERE a skip may fall (the cuts, `cuts.py`) and HOW LONG it is (the gaps).
P - T positions are free, the budget.

                   WHERE a skip may fall                 HOW LONG it is
    Contiguous     nowhere: normal fine-tuning
    RandPos        every token                           T ids of P, all choices alike
    SkipAlign      borders of the conversation's blocks  a law of `laws.py` divides the budget
    PoSE           one or a few tokens, any              bias uniform in {the last one..budget}
    PoSEAtMarkers  listed tokens                         gap uniform in {0..budget that is left}
    Cream          after a head and before a tail        tail at the end, middle by a Gaussian
    LongRecipe     between sentences                     N slots of P - T + N, all choices alike
    Logo           between chunks of equal length        each chunk anywhere in a bin of its own

Every class draws the eight tokens above; a bar stands between two blocks.

Shape letters: T tokens of a sample, P = max_position, K cuts.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from skipalign.cuts import block_borders, draw_within, last_turn, sentences, tokens_within
from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import DataError, RecipeError
from skipalign.laws import LAWS

_MOST_POSITIONS = 2**31 - 1


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


# The tokens before which ids are left out, and how many (0: none there).
Skips = tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"]]
NO_SKIPS: Skips = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def place(
    num_tokens: int, cuts: Int[np.ndarray, " K"], gaps: Int[np.ndarray, " K"]
) -> Int[np.ndarray, " T"]:
    """Return 0..T-1 with `gaps[k]` left out before token `cuts[k]`; everything after it moves."""
    steps = np.ones(num_tokens, np.int64)
    steps[0] = 0
    steps[cuts] += gaps
    return np.cumsum(steps)


@dataclass(frozen=True, kw_only=True)
class Skipping(Strategy):
    """What all strategies below share: a range of positions and a share of samples that skip.

    Args:
        max_position: P; the ids lie in [0, P).
        skip_fraction: share of the samples that skip, in [0, 1]; the others keep 0..T-1. It is
            our addition to the published methods, which always skip.
    """

    max_position: int
    skip_fraction: float = 1.0

    def positions(self, example: Example, rng: np.random.Generator) -> Int[np.ndarray, " T"]:
        num_tokens = len(example.input_ids)
        budget = self.max_position - num_tokens
        if budget < 0:
            raise DataError(
                f"a sample has {num_tokens:,} tokens, but strategy {self.name} has max_position "
                f"{self.max_position:,}; raise max_position or lower the source's max_tokens"
            )
        if rng.random() >= self.skip_fraction:
            return np.arange(num_tokens, dtype=np.int64)
        return place(num_tokens, *self.skips(example, budget, rng))

    @abstractmethod
    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        """Draw the cuts of a sample that skips, and their gaps, whose sum is at most `budget`."""

    def __post_init__(self) -> None:
        self._require(
            self.max_position >= 1,
            f"max_position is {self.max_position}; it counts positions and must be at least 1 - "
            "use the context length that you train for",
        )
        for name, value in vars(self).items():
            if isinstance(value, int):
                self._require(
                    value <= _MOST_POSITIONS,
                    f"{name} is {Decimal(value):.4g}; it must be at most {_MOST_POSITIONS:,} - use "
                    "the context length that you train for",
                )
        self._require_fraction("skip_fraction", "that skip")

    def _require_fraction(self, name: str, which: str) -> None:
        share = getattr(self, name)
        self._require(
            0 <= share <= 1,
            f"{name} is {share}; it is the share of samples {which} and must lie in [0, 1]",
        )

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise RecipeError(f"strategy {self.name}: {message}")


@dataclass(frozen=True, kw_only=True)
class RandPos(Skipping):
    """Give the T tokens T different ids of the whole range, sorted: a cut at every token.

    >>> randpos = RandPos(max_position=100)
    >>> print(drawing(randpos.positions(EIGHT_TOKENS, sample_rng(0, 0, "a")), EIGHT_TOKENS))
       1  22  42 |  46  61  71 |  78  94

    The first id is drawn as well.

    Source: Ruoss et al. 2023, arXiv 2305.16843, section 3.
    """

    name: ClassVar[str] = "randpos"

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        num_tokens = len(example.input_ids)
        ids = rng.choice(num_tokens + budget, num_tokens, replace=False, shuffle=False)
        return np.arange(num_tokens), np.diff(np.sort(ids), prepend=-1) - 1


@dataclass(frozen=True, kw_only=True)
class SkipAlign(Skipping):
    """Skip at the borders of the conversation's own blocks.

    >>> skip = SkipAlign(max_position=100, skip_fraction=1.0)
    >>> print(drawing(skip.positions(EIGHT_TOKENS, sample_rng(0, 0, "b")), EIGHT_TOKENS))
       0   1   2 |   9  10  11 |  95  96

    Block k keeps its inner order and moves by a cumulative bias u_k = u_(k-1) + s_k, s_k >= 0:
    a message is never torn, and the distance between a question and its document becomes that of
    a long context.

    Args:
        skip_fraction: share p of the samples that skip.
        skip_at: which borders may skip. `inner`: an instruction and its response (Skip-Inner);
            `outer`: a response and the next turn (Skip-Outer); `all`: every block border, also
            that of a system text (Skip-All, and the default); `token`: any token, the other
            reading of "skip everywhere"; `none`: no border, for `cuts_within` alone.
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

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        cuts = block_borders(example.segments, self.skip_at)
        if "token" in self.skip_at:
            cuts = np.union1d(cuts, tokens_within(example.segments))
        elif self.cuts_within:
            cuts = np.union1d(cuts, draw_within(example, self.cuts_within, self.cut_at, rng))
        if not len(cuts):
            return NO_SKIPS
        return cuts, LAWS[self.law].gaps(budget, len(cuts), rng)

    def __post_init__(self) -> None:
        super().__post_init__()
        words = (
            ("skip_at", self.skip_at, ("inner", "outer", "token", "all", "none")),
            ("law", (self.law,), LAWS),
            ("cut_at", (self.cut_at,), ("sentence", "token")),
        )
        for field, found, known in words:
            for word in found:
                self._require(word in known, f"{field} holds {word!r}; it takes {', '.join(known)}")
        self._require(
            self.cuts_within >= 0, f"cuts_within is {self.cuts_within}; it must be 0 or more cuts"
        )


@dataclass(frozen=True, kw_only=True)
class PoSE(Skipping):
    """Cut the sample into a few chunks anywhere and move each by its own bias.

    >>> pose = PoSE(max_position=100)
    >>> print(drawing(pose.positions(EIGHT_TOKENS, sample_rng(0, 0, "f")), EIGHT_TOKENS))
       0   1   2 |   3  53  54 |  55  56

    Chunk 0 stays; chunk i moves by u_i, uniform in {u_(i-1)..P - T}.

    Args:
        num_chunks: a sample of fewer tokens has as many chunks as tokens.

    Source: Zhu et al. 2023, arXiv 2309.10400, section 3; for two chunks the first has a length
        uniform in {1..(T + 1) // 2}, as in the authors' code.
    Differs: for more chunks than two the borders are drawn uniformly (our choice).
    """

    name: ClassVar[str] = "pose"
    num_chunks: int = 2

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        num_tokens = len(example.input_ids)
        if num_tokens == 1:
            return NO_SKIPS
        if self.num_chunks == 2:
            cuts = rng.integers(1, (num_tokens + 1) // 2 + 1, size=1)
        else:
            num_cuts = min(self.num_chunks, num_tokens) - 1
            cuts = np.sort(rng.choice(num_tokens - 1, num_cuts, replace=False)) + 1
        bias = np.zeros(len(cuts) + 1, np.int64)
        for chunk in range(1, len(bias)):
            bias[chunk] = rng.integers(bias[chunk - 1], budget + 1)
        return cuts, np.diff(bias)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.num_chunks >= 2,
            f"num_chunks is {self.num_chunks}; a skip needs 2 or more chunks",
        )


@dataclass(frozen=True, kw_only=True)
class PoSEAtMarkers(Skipping):
    """Skip before every token of a list, such as the one that begins a turn.

    >>> pose = PoSEAtMarkers(max_position=100, markers=(3, 5))
    >>> print(drawing(pose.positions(EIGHT_TOKENS, sample_rng(0, 0, "e")), EIGHT_TOKENS))
       0   1   2 |  31  32  90 |  91  92

    Each gap is uniform in {0..what the gaps before it left of P - T}, so that their means halve.

    Args:
        markers: token ids; a sample without any of them keeps 0..T-1.

    Source: axolotl, `use_pose` with `pose_split_on_token_ids`. A sample's first marker cuts nothing
        where it is one of the first two tokens, as there.
    Differs: its other mode, equal chunks where no token is listed, is not here: `PoSE` has chunks.
    """

    name: ClassVar[str] = "pose_markers"
    markers: tuple[int, ...]

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        cuts = np.flatnonzero(np.isin(example.input_ids, self.markers))
        if len(cuts) and cuts[0] < 2:
            cuts = cuts[1:]
        return cuts, LAWS["sequential"].gaps(budget, len(cuts), rng)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            bool(self.markers) and min(self.markers) >= 0,
            f"markers are {list(self.markers)}; they are token ids, at least one, 0 or more - list "
            "the ids before which a skip may fall",
        )


@dataclass(frozen=True, kw_only=True)
class Cream(Skipping):
    """Keep a head at the start, put a tail at the end, and between them a middle.

    >>> cream = Cream(max_position=100)
    >>> print(drawing(cream.positions(EIGHT_TOKENS, sample_rng(0, 0, "e")), EIGHT_TOKENS))
       0   1  22 |  23  24  25 |  98  99

    Head and tail have h tokens each, with equal probability T // 3 or, so that the middle is long
    and hardly torn, 4 P / T. The middle has the other m = T - 2 h. A factor a is normal with mean
    1 + P / T and deviation `std`, clipped to [2, 2 P / T], rounded down; the middle's last id is
    uniform in {h + (m - 1) a / 2 .. T a / 2 - h - 1}. So it lies mostly in the middle of the range.

    Args:
        std: deviation of a, in halves of a sample's length.

    Source: Wu, Zhao, Zheng 2024, arXiv 2406.07138; the rule to the integer as in the authors' code,
        which clips the Gaussian that the paper calls truncated.
    Differs: T is each sample's own length, not the model's window, and h is T // 3 at most, or
        nothing would be left of the middle where P is large. A sample of fewer than three tokens
        keeps 0..T-1.
    """

    name: ClassVar[str] = "cream"
    std: float = 3.0

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        num_tokens = len(example.input_ids)
        if num_tokens < 3:
            return NO_SKIPS
        scale = self.max_position / num_tokens
        short = rng.random() < 0.5
        head = min(int(4 * scale), num_tokens // 3) if short else num_tokens // 3
        middle = num_tokens - 2 * head
        half = np.floor(np.clip(rng.normal(1 + scale, self.std), 2, 2 * scale)) / 2
        lowest = int(head + (middle - 1) * half)
        highest = int(num_tokens * half) - head - 1
        skipped = int(rng.integers(lowest, highest + 1)) - (head + middle - 1)
        return np.array([head, head + middle]), np.array([skipped, budget - skipped])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.std >= 0,
            f"std is {self.std}; it is the deviation of where the middle ends, in halves of a "
            "sample's length, and must be 0 or more",
        )


@dataclass(frozen=True, kw_only=True)
class LongRecipe(Skipping):
    """Skip between sentences, the free positions spread over all of them.

    >>> recipe = LongRecipe(max_position=100)
    >>> print(drawing(recipe.positions(EIGHT_TOKENS, sample_rng(0, 0, "c")), EIGHT_TOKENS))
       0   1   2 |  15  16  49 |  73  74

    The N sentences of a sample and its P - T free positions are P - T + N slots; which N of them
    hold the sentences is drawn, all choices alike, and then the first sentence moves to slot 0.
    So the gap before the second sentence is on average twice as long as each of the others, and as
    much as one of those is left over behind the last.

    Source: Hu et al. 2024, arXiv 2409.00509, section 4.2: whole sentences, the first at 0, random
        gaps; the law of the gaps as in the authors' code.
    Differs: sentences begin at the sample's `breaks` and at every block; the authors end them at
        certain tokens of Llama's. Their training script lets a first part of random length keep
        0, 1, 2, ...; the paper does not, nor do we.
    """

    name: ClassVar[str] = "longrecipe"

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        cuts = sentences(example)
        num_sentences = len(cuts) + 1
        slots = rng.choice(budget + num_sentences, num_sentences, replace=False, shuffle=False)
        slots.sort()
        slots[0] = 0
        return cuts, np.diff(slots) - 1


@dataclass(frozen=True, kw_only=True)
class Logo(Skipping):
    """Cut the context into chunks of equal length, each placed in a bin of its own.

    >>> logo = Logo(max_position=100, chunk_tokens=3)
    >>> print(drawing(logo.positions(EIGHT_TOKENS, sample_rng(0, 0, "h")), EIGHT_TOKENS))
      42  43  44 |  55  56  57 |  98  99

    Of the P - T free positions every one of the N chunks gets e = (P - T) // N. Chunk j moves by
    j e + b, b uniform in {0..e}; in a sparse sample every token has a b of its own, in rising order
    within the chunk. The last question and its answer are no chunk; they end at P - 1.

    Args:
        chunk_tokens: length of a chunk, the last may be shorter; less than the paper's 512 where a
            sample is short.
        sparse_fraction: share of the skipping samples that are sparse, in [0, 1].

    Source: Tang et al. 2024, arXiv 2410.18533, section 3.2.2 (positional indices synthesis) and
        appendix D: chunks, uniform bias, nine continuous samples to one sparse one.
    Differs: bins are our reading; equation 4 alone, b uniform in {1..j e}, can put a chunk before
        the one it follows. Question and answer, which the equation leaves out, are the last turn
        here, and of a single turn, whose question holds the context, the answer.
    """

    name: ClassVar[str] = "logo"
    chunk_tokens: int = 512
    sparse_fraction: float = 0.1

    def skips(self, example: Example, budget: int, rng: np.random.Generator) -> Skips:
        context = last_turn(example.segments)
        chunk = np.arange(context) // self.chunk_tokens
        num_chunks = int(chunk[-1]) + 1
        spread = budget // num_chunks
        if rng.random() < self.sparse_fraction:
            bias = rng.integers(spread + 1, size=context)
        else:
            bias = rng.integers(spread + 1, size=num_chunks)[chunk]
        num_tokens = len(example.input_ids)
        moves = np.full(num_tokens, budget)
        # No bias of a chunk is above one of the next, so sorting orders tokens within their chunks.
        moves[:context] = np.sort(chunk * spread + bias)
        return np.arange(num_tokens), np.diff(moves, prepend=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.chunk_tokens >= 1,
            f"chunk_tokens is {self.chunk_tokens}; a chunk has 1 or more tokens",
        )
        self._require_fraction("sparse_fraction", "whose tokens skip one by one")


STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (Contiguous, RandPos, SkipAlign, PoSE, PoSEAtMarkers, Cream, LongRecipe, Logo)
}


# ------------------------------------------------------------- what the strategies draw with


def sample_rng(seed: int, epoch: int, sample_id: str) -> np.random.Generator:
    """Return the generator of one sample in one epoch.

    What a sample draws depends on these three values alone, so it is the same after a crash, on
    any number of workers or ranks, and in any order. Philox is keyed, not stepped: two keys give
    two independent streams.
    """
    name = f"{seed}\0{epoch}\0{sample_id}".encode()
    key = np.frombuffer(hashlib.blake2b(name, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


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


def drawing(positions: Int[np.ndarray, " T"], example: Example) -> str:
    """Return the ids in columns of four characters, with a bar between segments."""
    blocks = (positions[segment.start : segment.stop] for segment in example.segments)
    return " |".join("".join(f"{position:4d}" for position in block) for block in blocks)
