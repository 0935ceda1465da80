"""Prompts that have exactly the number of tokens asked for, fast; no character is cut in two.

A prompt is one user message, [passage with records][separator][question] or the question first,
rendered by the chat template that training uses and joined by token ids.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int

from skipalign.conversation import Message
from skipalign.errors import ModelError, RecipeError
from skipalign.evaluation.haystack import Haystack, read_haystack, tokenized
from skipalign.evaluation.records import Hidden, RetrievalSettings
from skipalign.template import Template
from skipalign.tokens import DataTokenizer, DropError, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST_PASSAGE = 16  # tokens of prose that a prompt has besides its records
_SPARE = 16  # tokens of prose laid out too many, then cut: joining may save a token or two
MARGIN = 8  # tokens before the passage's end at which no record stands, for the same reason
_LONGEST_CHARACTER = 4  # tokens, one for each byte
_MARK = "DOCUMENT-AND-QUESTION"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt with its chat template; token indices of the needle and of the question in it."""

    ids: Int[np.ndarray, " T"]
    needle_start: int
    question_start: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What stands where in a prompt.

    Attributes:
        context_length: tokens of the whole prompt.
        question: asked before or after the passage.
        texts: the hidden sentences, each with the space before it, if its language has any.
        pieces: their tokens, as they are after a full stop.
        sentence: of the haystack, with which the passage begins.
        room: tokens of prose that fit.
        placed: (token of the prose before which it stands, index of the text), in order; text 0
            is the needle.
    """

    context_length: int
    question: str
    texts: Sequence[str]
    pieces: Sequence[Int[np.ndarray, " T"]]
    sentence: int
    room: int
    placed: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Tokens of a part of the prompt; `record` is the text's index, None for prose."""

    ids: Int[np.ndarray, " T"]
    record: int | None = None
    start: int = 0


_haystacks: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, Haystack]]" = WeakKeyDictionary()


class PromptMaker:
    """Make prompts of an exact number of tokens; the prose is tokenised once a process.

    Args:
        tokenizer: of the model.
        settings: what is hidden and asked.
        question_first: the question stands before the passage.

    Raises:
        DataError: no haystack (see `read_haystack`).
        RecipeError: a text that holds a special token's text.
        ModelError: the tokenizer or its template cannot be used.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        settings: RetrievalSettings,
        *,
        question_first: bool = False,
    ) -> None:
        self.settings = settings
        self.question_first = question_first
        self._texts = DataTokenizer(tokenizer)
        template = Template(tokenizer, self._texts, settings.template_kwargs)
        self._head, self._tail = _around_content(template)
        self._wording = settings.wording
        text = read_haystack(settings.haystack, spaced=bool(self._wording.space))
        self._refuse_control(text)
        self.haystack_sha256 = hashlib.sha256(text.encode()).hexdigest()
        known = _haystacks.setdefault(tokenizer, {})
        key = f"{len(tokenizer)} {settings.language} {self.haystack_sha256}"
        if key not in known:
            after_stop = partial(self._after, self._wording.stop)
            known[key] = tokenized(text, after_stop, self._wording.space)
        self.haystack = known[key]

    def described(self) -> dict[str, Any]:
        """Return what besides the settings decides the prompts, for the results file."""
        tokens = hashlib.sha256(self.haystack.ids.astype("<i4").tobytes())
        tokens.update(f"{self._head}\0{self._tail}".encode())
        return {
            "haystack_sha256": self.haystack_sha256,
            "haystack_tokens": len(self.haystack.ids),
            "template_and_tokens_sha256": tokens.hexdigest(),
        }

    def make(
        self, context_length: int, depth: float, hidden: Hidden, rng: np.random.Generator
    ) -> Prompt:
        """Make a prompt of exactly `context_length` tokens, template and question included.

        It has up to three fewer where the passage would end within a character of several tokens.

        The first text goes to the border nearest to `depth` of the passage (0: first, 1: last).
        The others go to random borders. A border is where a sentence begins, before or after
        another record, and the passage's end, which is cut at a token.

        Raises:
            RecipeError: the prompt has no room for its records.
        """
        texts = self.spaced(hidden.texts)
        pieces = self.pieces(texts)
        taken = [len(piece) for piece in pieces]
        room = self.room(context_length, hidden.question, taken)
        sentence = int(rng.integers(len(self.haystack.borders)))
        inner = self.haystack.borders_from(sentence, max(1, room - MARGIN))
        placed = _placed(np.append(inner, room), depth, taken, rng)
        return self.assembled(
            Plan(context_length, hidden.question, texts, pieces, sentence, room, placed)
        )

    def spaced(self, texts: Sequence[str]) -> list[str]:
        """Return sentences as they stand in prose, with the space before each."""
        return [self._wording.space + text for text in texts]

    def pieces(self, texts: Sequence[str]) -> list[Int[np.ndarray, " T"]]:
        """Return the tokens of each text as after a full stop; see `spaced`."""
        stop = self._wording.stop
        found = self._texts.tokenize([stop + text for text in texts])
        return [self._behind(stop, *pair).ids for pair in zip(texts, found, strict=True)]

    def room(self, context_length: int, question: str, taken: Sequence[int]) -> int:
        """Return how many tokens of prose fit besides records of `taken` tokens.

        Raises:
            RecipeError: too few.
        """
        fixed = self.num_before(question) + sum(taken) + len(self._closing("", question)[0])
        if context_length - fixed < _LEAST_PASSAGE:
            raise RecipeError(
                f"context_length {context_length}: template, question and {len(taken)} record(s) "
                f"take {fixed} tokens; at least {fixed + _LEAST_PASSAGE} are required - "
                "leave this length out, or use fewer distractors or shorter texts"
            )
        return context_length - fixed

    def num_before(self, question: str) -> int:
        """Return how many tokens stand before the passage."""
        return len(self._opening(question, ".")[0]) - 1

    def assembled(self, plan: Plan) -> Prompt:
        """Join what stands in a plan into a prompt of its length; see `make`."""
        passage = self.haystack.passage(plan.sentence, plan.room + _SPARE)
        parts = _parts(passage, plan)
        parts[0] = self._first(parts[0], plan)
        ending, question_start = self._closing("", plan.question)
        if (last := parts[-1].record) is not None:
            ending, question_start = self._closing(plan.texts[last], plan.question)
            parts[-1] = _Part(ending[:0], last)
        excess = sum(len(part.ids) for part in parts) + len(ending) - plan.context_length
        assert excess >= 0, "the spare tokens make up for every joint"
        kept = self.haystack.whole_tokens(
            plan.sentence, len(passage) - excess, _LONGEST_CHARACTER - 1
        )
        prompt = _joined(parts, _Part(ending, start=question_start), len(passage) - kept)
        if self.question_first:
            opening = self._tokens(self._head + plan.question)
            start = int(np.searchsorted(opening.stops, len(self._head), side="right"))
            return replace(prompt, question_start=start)
        return prompt

    def _first(self, part: _Part, plan: Plan) -> _Part:
        """Tokenise the first part anew, with what stands before the passage."""
        if part.record is not None:
            ids, start = self._opening(plan.question, plan.texts[part.record].lstrip())
            return _Part(ids, part.record, start)
        num_known = self.haystack.sentence_tokens(plan.sentence)
        ids, _ = self._opening(plan.question, self.haystack.sentences[plan.sentence])
        return _Part(np.concatenate([ids, part.ids[num_known:]]))

    def _opening(self, question: str, text: str) -> tuple[Int[np.ndarray, " T"], int]:
        """Return the tokens up to and with `text`, and where those of `text` begin."""
        head = self._head
        if self.question_first:
            head += question + self.settings.separator
        tokens = self._tokens(head + text)
        return tokens.ids, int(np.searchsorted(tokens.stops, len(head), side="right"))

    def _closing(self, record: str, question: str) -> tuple[Int[np.ndarray, " T"], int]:
        """Return the tokens from the last record (or '') on, and where the question begins."""
        before, ending = record + self.settings.separator, question + self._tail
        if self.question_first:
            before, ending = record, self._tail
        left = self._wording.stop if record else self._wording.letter
        tokens = self._after(left, before + ending)
        return tokens.ids, int(np.searchsorted(tokens.stops, len(before), side="right"))

    def _after(self, left: str, text: str) -> Tokens:
        """Return the tokens of `text` as they are after `left`, characters counted from there.

        Raises:
            ModelError: a token reaches over the border.
        """
        return self._behind(left, text, self._tokens(left + text))

    def _behind(self, left: str, text: str, tokens: Tokens) -> Tokens:
        """Take the tokens of `left` off those of `left` and `text`."""
        first = int(np.searchsorted(tokens.stops, len(left), side="right"))
        if first == len(tokens) or tokens.starts[first] < len(left):
            raise ModelError(
                f"tokenizer {self._texts.name}: {left + text[:20]!r} has a token that reaches over "
                f"the border after {left!r}; prompts are joined there - use a tokenizer that "
                "parts words from what follows"
            )
        starts, stops = tokens.starts[first:] - len(left), tokens.stops[first:] - len(left)
        return Tokens(tokens.ids[first:], starts, stops)

    def _tokens(self, text: str) -> Tokens:
        return self._texts.tokenize([text])[0]

    def _refuse_control(self, haystack: str) -> None:
        settings = self.settings
        texts = {"haystack": [haystack], "needle": [settings.needle]}
        texts["question"] = [settings.question, settings.key_joiner]
        texts["link"] = [settings.link or ""]
        texts["keys and values"] = list(settings.all_names())
        for name, text in ((name, text) for name, group in texts.items() for text in group):
            if (found := self._texts.find_control_text(text)) is not None:
                raise RecipeError(
                    f"{name}: {text[slice(*found)]!r} is a special token of this tokenizer; "
                    "prompts must be ordinary text - take it out"
                )


def _around_content(template: Template) -> tuple[str, str]:
    """Return what the template writes before and after a user's text."""
    try:
        text = template.render([Message("user", _MARK)], prompt=True)
    except DropError as error:
        raise ModelError(
            f"{error.detail}; a prompt is a single user message, which the template must take - "
            "mend tokenizer.chat_template, or give it what it asks for in template_kwargs"
        ) from None
    if text.count(_MARK) != 1:
        raise ModelError(
            f"the chat template writes the user's text {text.count(_MARK)} times; prompts need it "
            "once - use another template"
        )
    head, _, tail = text.partition(_MARK)
    return head, tail


def _placed(
    borders: Int[np.ndarray, " B"],
    depth: float,
    lengths: Sequence[int],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return (border, record) in the order of the text; record 0 is the needle.

    The others are drawn first; the needle then has its choice of all borders and of the places
    between records at one border.
    """
    num = len(lengths) - 1
    slots = np.sort(rng.choice(len(borders), size=num, replace=num > len(borders)))
    ahead = np.cumsum([0, *lengths[1:]])
    # Before the needle stand `before` other records; border `place` allows `low` to `high` of them.
    low = np.searchsorted(slots, np.arange(len(borders)), side="left")
    high = np.searchsorted(slots, np.arange(len(borders)), side="right")
    choices = [
        (int(border + ahead[before]), place, before)
        for place, border in enumerate(borders)
        for before in range(low[place], high[place] + 1)
    ]
    target = depth * (int(borders[-1]) + int(ahead[-1]))
    _, place, before = min(choices, key=lambda choice: abs(choice[0] - target))
    order = [(int(borders[slot]), other) for other, slot in enumerate(slots, start=1)]
    order.insert(before, (int(borders[place]), 0))
    return order


def _parts(passage: Int[np.ndarray, " T"], plan: Plan) -> list[_Part]:
    """Part the passage at its records; those at its end, `room`, come after the spare tokens."""
    parts: list[_Part] = []
    done = 0
    for place, record in plan.placed:
        stop = len(passage) if place == plan.room else place
        parts += [_Part(passage[done:stop]), _Part(plan.pieces[record], record)]
        done = stop
    parts.append(_Part(passage[done:]))
    return [part for part in parts if len(part.ids)]


def _joined(parts: Sequence[_Part], closing: _Part, excess: int) -> Prompt:
    """Join the parts; the last stretch of prose gives up its last `excess` tokens."""
    last = max(index for index, part in enumerate(parts) if part.record is None)
    assert excess < len(parts[last].ids), "no more than the spare tokens is given up"
    kept = [
        part.ids[:-excess] if index == last and excess else part.ids
        for index, part in enumerate(parts)
    ]
    needle = next(index for index, part in enumerate(parts) if part.record == 0)
    needle_start = sum(len(ids) for ids in kept[:needle]) + parts[needle].start
    ids = np.concatenate([*kept, closing.ids])
    return Prompt(ids, needle_start, len(ids) - len(closing.ids) + closing.start)
