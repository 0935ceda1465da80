"""Prompts -> completions: the protocol that every backend keeps, and what backends share.

Greedy everywhere: the same prompt gives the same answer, alone or in a batch.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens of prompts that a task hands over together; a kill loses no more than that.
_TOKENS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its tokens up to, and without, the token that ended it, and their text.

    `ids` are empty where a backend gives text alone.
    """

    ids: list[int]
    text: str


class Generator(Protocol):
    """Whatever answers prompts."""

    @property
    def identity(self) -> str:
        """A digest that changes whenever the answers may: no resumed result mixes two models."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        position_ids: Sequence[Int[np.ndarray, " T"]] | None = None,
        more_stop_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> list[Completion]:
        """Answer each prompt greedily; the answer's positions follow the prompt's last one.

        Tokens of `more_stop_ids` end an answer as well; none ends it within `min_new_tokens`.
        """
        ...


@runtime_checkable
class LikelihoodGenerator(Generator, Protocol):
    """A backend that also tells how likely a given text is."""

    def log_likelihoods(
        self, texts: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[Float[np.ndarray, " N"]]:
        """Return the log-likelihood, in nats, of each text's tokens from its start on."""
        ...


def answers_of(
    generator: Generator, prompts: Sequence[Sequence[int]], **options: Any
) -> Iterator[tuple[int, Completion]]:
    """Yield (index, answer), so that a task can keep each answer as soon as it is there.

    A backend whose answers come one by one has a method `stream`; of any other they come at once.

    Args:
        generator: the backend.
        prompts: token ids.
        options: of `Generator.generate`.
    """
    stream = getattr(generator, "stream", None)
    if stream is not None:
        yield from stream(prompts, **options)
    else:
        yield from enumerate(generator.generate(prompts, **options))


def tokens_at_once(generator: Generator) -> int:
    """Return how many tokens of prompts a task hands over together.

    A kill loses what was handed over and not given back: a backend with `stream` gives back each
    answer, and may take more.
    """
    return int(getattr(generator, "tokens_at_once", _TOKENS_AT_ONCE))


def stop_ids(
    model: "PreTrainedModel | None", tokenizer: "PreTrainedTokenizerBase"
) -> frozenset[int]:
    """Return the ids that end an answer: end of text and the chat template's end of turn."""
    found: set[int] = set()
    config = getattr(model, "generation_config", None)
    named: tuple[Any, ...] = (getattr(config, "eos_token_id", None), tokenizer.eos_token_id)
    for eos in named:
        found.update([eos] if isinstance(eos, int) else eos or [])
    if tokenizer.chat_template:
        found.update(_end_of_turn(tokenizer))
    return frozenset(found)


def completion_of(
    ids: Sequence[int], stops: Collection[int], tokenizer: "PreTrainedTokenizerBase"
) -> Completion:
    """Return what was answered before the first token of `stops`."""
    stop = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    kept = list(ids[:stop])
    return Completion(kept, str(tokenizer.decode(kept, skip_special_tokens=True)))


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the id of the added token that the template writes after an answer, if it is one."""
    answer = "An answer."
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    after = text.rpartition(answer)[2].lstrip()
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    matches = {token: str(piece) for token, piece in added.items() if after.startswith(str(piece))}
    return {max(matches, key=lambda token: len(matches[token]))} if matches else set()
