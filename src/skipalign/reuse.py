"""Prompts that begin alike -> answers, every shared beginning computed once.

Prompts in the order of their token ids are the leaves of a tree of beginnings, read branch by
branch. One cache holds the branch that is being read: it is cropped back to where the next prompt
parts from it, and goes on from there, so every token of the tree is computed once.

It is exact for full attention and fixed frequencies: then keys and values of a token depend on
nothing after it. `refusal` says where that does not hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from skipalign.generation import Completion
from skipalign.rope import BATCH_DEPENDENT
from skipalign.transformers_engine import TransformersGenerator


@dataclass(frozen=True, slots=True)
class Check:
    """The plain way beside the one with reuse: all tokens of the prompt computed anew.

    Attributes:
        logit_difference: the largest of the first answer token.
        answer: the plain way's.
    """

    logit_difference: float
    answer: str


@dataclass(frozen=True, slots=True)
class Reused:
    """The answer to one prompt.

    Attributes:
        index: of the prompt.
        completion: its answer.
        num_computed: tokens of the prompt that the cache did not hold.
        check: None where none was asked for.
    """

    index: int
    completion: Completion
    num_computed: int
    check: Check | None


def refusal(generator: object) -> str | None:
    """Return why answers with reuse would not be exact, or None where they are."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not isinstance(generator, TransformersGenerator):
        return f"{type(generator).__name__} has no cache that can be cropped"
    layers = DynamicCache(config=generator.model.config).layers
    other = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if other or not layers:
        return (
            f"layers of the model keep {', '.join(other) or 'no cache'}; only that of full "
            "attention can be cropped at any token"
        )
    rope: dict[str, Any] = getattr(generator.model.config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for rope_type in (str(each.get("rope_type")) for each in kinds):
        if rope_type in BATCH_DEPENDENT:
            return (
                f"rope_type {rope_type!r} chooses its frequencies from the prompt's length, so "
                "that a beginning has other keys in a longer prompt"
            )
    return None


def answers(
    generator: TransformersGenerator,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    checked: Sequence[int] = (),
) -> Iterator[Reused]:
    """Answer prompts greedily, in an order that computes every shared beginning once.

    Args:
        generator: `refusal` must be None.
        prompts: token ids, template included, at natural positions.
        max_new_tokens: the longest answer.
        checked: indices of prompts that are also answered the plain way, before the others, so
            that one cache is in memory at a time.

    Raises:
        ModelError: see `TransformersGenerator.generate`.
    """
    from transformers import DynamicCache

    rows = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
    config = generator.model.config
    plain = {
        index: generator.answer_from(DynamicCache(config=config), rows[index], max_new_tokens)
        for index in checked
    }
    cache = DynamicCache(config=config)
    for index, kept in order(rows):
        cache.crop(kept - cache.get_seq_length())  # transformers takes how many to remove, below 0
        completion, logits = generator.answer_from(cache, rows[index], max_new_tokens)
        check = None
        if index in plain:
            expected, anew = plain[index]
            check = Check(float((logits - anew).abs().max()), expected.text)
        yield Reused(index, completion, len(rows[index]) - kept, check)


def order(prompts: Sequence[Int[np.ndarray, " T"]]) -> Iterator[tuple[int, int]]:
    """Yield each prompt's index, and how many of its tokens the one before it begins with, too.

    The last token is never counted: it has the logits of the answer.
    """
    before = np.empty(0, dtype=np.int64)
    # Sorted as bytes, all prompts with one beginning stand together.
    for index in sorted(range(len(prompts)), key=lambda index: prompts[index].tobytes()):
        yield index, min(_num_alike(before, prompts[index]), len(prompts[index]) - 1)
        before = prompts[index]


def _num_alike(one: Int[np.ndarray, " T"], other: Int[np.ndarray, " U"]) -> int:
    """Return how many tokens two prompts begin with alike."""
    num = min(len(one), len(other))
    unlike = np.flatnonzero(one[:num] != other[:num])
    return int(unlike[0]) if len(unlike) else num
