"""Positions -> key biases: how heavy each key is in attention, in training only.

A key bias is our own addition to skipped positions: it tells the softmax how much text every gap
left out, or, in the controls, the same amount of something else.

Shape letters: T tokens of a sample, R runs of consecutive positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from skipalign.encoding import IGNORE_INDEX, Example, Segment
from skipalign.errors import RecipeError


def runs(positions: Int[np.ndarray, " T"]) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " R"]]:
    """Return the first and the one-past-last token index of every run of consecutive positions."""
    skips = np.flatnonzero(np.diff(positions) != 1) + 1
    edges = np.concatenate([[0], skips, [len(positions)]])
    return edges[:-1], edges[1:]


@dataclass(frozen=True, kw_only=True)
class KeyBias(ABC):
    """A number for every key, one per run of consecutive positions, added to attention logits.

    A skip changes distances, but not how many keys compete in the softmax: a row of 128 tokens has
    128 of them wherever they sit. In TRAINING a key bias makes some runs heavier than others;
    evaluation and the saved model know nothing of it.

    It is our own addition. Softmax ignores a constant shift, so only differences between runs act,
    and weights that are shuffled (`PermutedBias`) or random (`NoiseBias`) do as well as those that
    stand for the text left out (`GapBias`); skips at the same places without any bias do as well on
    needles, less on plain text (docs/key-bias.md).

    Args:
        keep_first_zero: no bias on the first token, the attention sink of many models.
        keep_template_zero: no bias on template tokens (headers and end-of-turn).
        keep_answer_zero: no bias on the runs in which a word of an answer stands before it: a
            control for data of retrieval, whose answers are names and numbers of the text.
        cap: largest bias, in nats.
    """

    name: ClassVar[str]
    keep_first_zero: bool = False
    keep_template_zero: bool = False
    keep_answer_zero: bool = False
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.cap is not None and not self.cap > 0:
            raise RecipeError(
                f"key_bias {self.name}: cap is {self.cap}; it is the largest bias in nats and "
                "must be above 0 - leave it out for no cap"
            )

    def values(
        self, example: Example, positions: Int[np.ndarray, " T"], rng: np.random.Generator
    ) -> Float[np.ndarray, " T"]:
        """Return the bias of every key, in nats (natural logarithm), float32.

        `rng` is the sample's own generator, after its positions were drawn from it.
        """
        starts, stops = self._runs(positions)
        weights = self._per_run(positions, starts, stops, rng)
        if self.cap is not None:
            weights = np.minimum(weights, self.cap)
        if self.keep_answer_zero:
            weights = np.where(_holds_answer(example, starts), 0, weights)
        values = np.repeat(weights, stops - starts).astype(np.float32)
        if self.keep_template_zero:
            values[_template_tokens(example.segments)] = 0
        if self.keep_first_zero:
            values[0] = 0
        return values

    def _runs(
        self, positions: Int[np.ndarray, " T"]
    ) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " R"]]:
        return runs(positions)

    @abstractmethod
    def _per_run(
        self,
        positions: Int[np.ndarray, " T"],
        starts: Int[np.ndarray, " R"],
        stops: Int[np.ndarray, " R"],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, " R"]:
        """Return one bias per run."""


@dataclass(frozen=True, kw_only=True)
class GapBias(KeyBias):
    """Let every run stand for the text that the gap behind it left out.

    Run i of l_i tokens, followed by a gap of g_i positions, has the bias log((l_i + g_i) / l_i):
    each of its keys competes like (l_i + g_i) / l_i keys, as if the long text whose positions the
    row carries were there. An integer weight n equals the key and its value
    repeated n times. A pure function of the positions.

    >>> from skipalign.positions import EIGHT_TOKENS, sample_rng
    >>> positions = np.array([0, 1, 2, 41, 42, 43, 96, 97])
    >>> bias = GapBias().values(EIGHT_TOKENS, positions, sample_rng(0, 0, "a"))
    >>> print(bias.round(2))
    [2.61 2.61 2.61 2.91 2.91 2.91 0.   0.  ]

    Source: ours. Its pieces are known: proportional attention of merged tokens (Bolya et al. 2023,
        arXiv 2210.09461), log quadrature weights of unevenly sampled keys (arXiv 2406.06486).
    """

    name: ClassVar[str] = "gap"

    def _per_run(
        self,
        positions: Int[np.ndarray, " T"],
        starts: Int[np.ndarray, " R"],
        stops: Int[np.ndarray, " R"],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Float[np.ndarray, " R"]:
        edges = np.append(positions[starts], positions[-1] + 1)
        return np.log(np.diff(edges) / (stops - starts))


@dataclass(frozen=True, kw_only=True)
class PermutedBias(GapBias):
    """Shuffle the values of `GapBias` over the runs: as uneven, but standing for no text.

    The control for what `GapBias` claims, and in our trials no worse than it.
    """

    name: ClassVar[str] = "permuted"

    def _per_run(
        self,
        positions: Int[np.ndarray, " T"],
        starts: Int[np.ndarray, " R"],
        stops: Int[np.ndarray, " R"],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, " R"]:
        return rng.permutation(super()._per_run(positions, starts, stops, rng))


@dataclass(frozen=True, kw_only=True)
class NoiseBias(KeyBias):
    """Draw every run's bias from a normal distribution of mean 0.

    Args:
        std: its standard deviation, in nats.
        per: `run`, or `key` for a draw of its own at every token.
    """

    name: ClassVar[str] = "noise"
    std: float = 1.0
    per: Literal["run", "key"] = "run"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std < 0:
            raise RecipeError(f"key_bias noise: std is {self.std}; it must be 0 nats or more")
        if self.per not in ("run", "key"):
            raise RecipeError(f"key_bias noise: per is {self.per!r}; it must be 'run' or 'key'")

    def _runs(
        self, positions: Int[np.ndarray, " T"]
    ) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " R"]]:
        if self.per == "run":
            return runs(positions)
        return np.arange(len(positions)), np.arange(1, len(positions) + 1)

    def _per_run(
        self,
        positions: Int[np.ndarray, " T"],  # noqa: ARG002
        starts: Int[np.ndarray, " R"],
        stops: Int[np.ndarray, " R"],  # noqa: ARG002
        rng: np.random.Generator,
    ) -> Float[np.ndarray, " R"]:
        return self.std * rng.standard_normal(len(starts))


KEY_BIASES: dict[str, type[KeyBias]] = {
    bias.name: bias for bias in (GapBias, PermutedBias, NoiseBias)
}


def _template_tokens(segments: Sequence[Segment]) -> Int[np.ndarray, " N"]:
    outside = [
        np.r_[segment.start : segment.content_start, segment.content_stop : segment.stop]
        for segment in segments
    ]
    return np.concatenate(outside).astype(np.int64)


def _holds_answer(example: Example, starts: Int[np.ndarray, " R"]) -> Bool[np.ndarray, " R"]:
    """Return for every run whether a word of an answer stands in it without being trained there."""
    is_content = np.ones(len(example.input_ids), bool)
    is_content[_template_tokens(example.segments)] = False
    is_trained = example.labels != IGNORE_INDEX
    words = example.input_ids[is_content & is_trained]
    found = is_content & ~is_trained & np.isin(example.input_ids, words)
    return np.logical_or.reduceat(found, starts)
