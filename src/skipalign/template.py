"""Messages -> text by the chat template, and where in it each message and each answer lies.

Where content lies is found by rendering once more with marks in every content; the marks are
believed only where the text without them is the very same text. Where an answer begins and ends is
found by rendering the conversation up to it, as inference would, or by `{% generation %}`. What
cannot be placed this way is refused; nothing is searched for or guessed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from skipalign.conversation import Message
from skipalign.errors import ModelError, RecipeError
from skipalign.tokens import DataTokenizer, DropError, Tokens, make_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TEMPLATE_NAME = "skipalign-plain"
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For tokenizers without a template; `{{ bos_token }}` precedes it where the tokenizer adds one."""


class NotPrefixError(DropError):
    """The text up to an answer is not how the whole conversation begins."""


@dataclass(frozen=True, slots=True)
class Block:
    """A message in the rendered text; all numbers count characters.

    Attributes:
        index: which message.
        content: where its content lies, white space around it left out.
        data: where the row's own text lies; None where there is none or it was rewritten.
        answer: where a trained answer begins and where its end-of-turn must have come.
    """

    index: int
    role: str
    start: int
    stop: int
    content: tuple[int, int]
    data: tuple[int, int] | None
    answer: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A rendered conversation. Blocks are gapless; `tokens` are there where they were needed.

    Attributes:
        last_only: the last message alone is trained.
        left_out: how many messages the template does not render.
        not_marked: how many answers have no `{% generation %}` block.
    """

    messages: tuple[Message, ...]
    text: str
    blocks: tuple[Block, ...]
    last_only: bool = False
    left_out: int = 0
    not_marked: int = 0
    tokens: Tokens | None = None


class Template:
    """The tokenizer's chat template, or the plain one.

    Attributes:
        name: "tokenizer" or DEFAULT_TEMPLATE_NAME.
        text: the Jinja text in use.

    Raises:
        ModelError: the template is not Jinja, or there is none and no EOS to end an answer with.
        RecipeError: `template_kwargs` holds what encoding sets itself.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        texts: DataTokenizer,
        template_kwargs: Mapping[str, Any],
    ) -> None:
        if taken := sorted(_RESERVED & template_kwargs.keys()):
            raise RecipeError(
                f"template_kwargs holds {', '.join(taken)}, which encoding sets itself; it takes "
                "what the template reads besides messages, such as enable_thinking - remove it"
            )
        self._tokenizer = cast(Any, tokenizer)
        self._texts = texts
        self._kwargs = dict(template_kwargs)
        self.name, self.text = self._find()
        self._by_generation = bool(_GENERATION.search(self.text))
        texts.add_control(self._opening())

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """Render; with `prompt` also the header after which the model answers.

        Raises:
            DropError: the template raised.
            ModelError: it is not Jinja.
        """
        try:
            return self._tokenizer.apply_chat_template(
                _dicts(messages),
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._kwargs,
            )
        except TemplateSyntaxError as error:
            raise ModelError(
                f"tokenizer {self._texts.name}: line {error.lineno} of its chat template is not "
                f"Jinja ({error.message}); mend tokenizer.chat_template"
            ) from None
        # A template may do anything with a message that it was not written for.
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise DropError("template_refused", f"the chat template says: {error}") from None

    def locate(self, messages: tuple[Message, ...], last_only: bool = False) -> Rendered:
        """Render a conversation and find its messages and its answers.

        Args:
            last_only: train on the last message alone, which must be an answer.

        Raises:
            NotPrefixError: an answer is not rendered as inference would see it.
            DropError: the conversation cannot be kept for another reason.
        """
        draft = self._draft(messages)
        if not self._by_generation:
            self._find_prefixed(draft, last_only)
        self._find_places(draft)
        tokens = self._find_generated(draft) if self._by_generation else None
        self._check_answers(draft)
        blocks = _blocks(draft, self._starts(draft))
        asked = sum(message.role == "assistant" for message in messages)
        not_marked = asked - len(draft.answers) if self._by_generation else 0
        left_out = len(messages) - len(draft.shown)
        return Rendered(messages, draft.text, blocks, last_only, left_out, not_marked, tokens)

    def _find(self) -> tuple[str, str]:
        if self._tokenizer.chat_template:
            try:
                return "tokenizer", self._tokenizer.get_chat_template()
            except ValueError as error:
                raise ModelError(f"tokenizer {self._texts.name}: {error}") from None
        if self._tokenizer.eos_token is None:
            raise ModelError(
                f"tokenizer {self._texts.name}: it has neither a chat template nor an eos_token, "
                "with which an answer must end - set one of them on the tokenizer"
            )
        bos = "{{ bos_token }}" if self._texts.adds_bos() else ""
        return DEFAULT_TEMPLATE_NAME, bos + DEFAULT_TEMPLATE

    def _opening(self) -> str:
        try:
            return self.render([Message("user", "a")])
        except DropError:
            return ""

    def _draft(self, messages: tuple[Message, ...]) -> "_Draft":
        text = self.render(messages)
        borders: list[int | None] = [0]
        for i in range(1, len(messages)):
            try:
                prefix = self.render(messages[:i])
            except DropError:
                borders.append(None)
            else:
                borders.append(len(prefix) if text.startswith(prefix) else None)
        return _Draft(messages, text, [*borders, len(text)])

    def _find_prefixed(self, draft: "_Draft", last_only: bool) -> None:
        """Find answers as what follows the generation prompt in the rendered text."""
        messages = draft.messages
        for i, message in enumerate(messages):
            if message.role != "assistant" or (last_only and i < len(messages) - 1):
                continue
            stop = draft.borders[i + 1]
            prompt = self.render(messages[:i], prompt=True)
            if stop is None or len(prompt) > stop or not draft.text.startswith(prompt):
                raise NotPrefixError(
                    "not_a_prefix",
                    f"message {i + 1}: the chat template renders the text up to it otherwise than "
                    "in the whole, so what inference would see before it is not known",
                )
            draft.answers[i] = (len(prompt), stop)

    def _find_generated(self, draft: "_Draft") -> Tokens:
        """Find answers by transformers' own mask of generation blocks; return the tokens."""
        found = self._texts.exact.apply_chat_template(
            _dicts(draft.messages),
            chat_template=self.text,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
            **self._kwargs,
        )
        tokens = make_tokens(found["input_ids"], found["offset_mapping"])
        edges = np.flatnonzero(np.diff(found["assistant_masks"], prepend=0, append=0))
        for first, last in zip(edges[0::2], edges[1::2] - 1, strict=True):
            run = int(tokens.starts[first]), int(tokens.stops[last])
            touched = [i for i, place in enumerate(draft.places) if place and place.touches(*run)]
            if len(touched) != 1 or draft.messages[touched[0]].role != "assistant":
                raise DropError("generation_block", "a {% generation %} block holds other text")
            if touched[0] in draft.answers:
                raise DropError("generation_block", "an answer has two {% generation %} blocks")
            draft.answers[touched[0]] = run
        return tokens

    def _check_answers(self, draft: "_Draft") -> None:
        for i, (start, stop) in draft.answers.items():
            place = draft.places[i]
            if place is None or not start <= place.begin <= place.stop <= stop:
                raise DropError(
                    "content_not_found", f"message {i + 1} is not where the template puts answers"
                )

    def _find_places(self, draft: "_Draft") -> None:
        """Find where each content lies: None for those without text or left out."""
        messages, text = draft.messages, draft.text
        if any(_ANY_MARK.search(message.content) for message in messages):
            raise DropError("content_not_found", "a message holds U+FDD0 to U+FDEF, never text")
        places = self._between_marks(messages, text) or self._around_marks(messages, text)
        if places is None:
            raise DropError(
                "content_not_found", "the chat template changes with what the messages hold"
            )
        known = [place for place in places if place is not None]
        if not known or any(a.stop > b.begin for a, b in pairwise(known)):
            raise DropError("content_not_found", "the chat template renders messages out of order")
        for message, place in zip(messages, places, strict=True):
            lost = place is not None and place.start is None
            if lost and self._texts.find_control_text(message.content):
                raise DropError(
                    "special_text", "a special token stands in text that the template rewrites"
                )
        draft.places = places

    def _starts(self, draft: "_Draft") -> list[int]:
        """Return where each message's block begins: where the prefix before it ends.

        Where no prefix ends between two contents, the earlier message gets the text between them,
        through the first control token and its white space if there is one.
        """
        shown, text = draft.shown, draft.text
        highest: dict[int, int] = {}
        high = len(text)
        for i in reversed(shown):
            if place := draft.places[i]:
                high = draft.answers[i][0] if i in draft.answers else place.begin
            highest[i] = high
        starts, low = [0], 0
        for before, i in pairwise(shown):
            if place := draft.places[before]:
                low = place.stop
            border = draft.borders[i]
            if border is None or not low <= border <= highest[i]:
                gap = text[low : highest[i]]
                found = self._texts.find_control_text(gap)
                stop = found[1] if found else len(gap)
                border = low + stop + len(gap[stop:]) - len(gap[stop:].lstrip())
            starts.append(border)
            low = border
        return starts

    def _between_marks(
        self, messages: Sequence[Message], text: str
    ) -> "list[_Place | None] | None":
        """Find contents by marks around each, inside its white space, which templates may trim."""
        marked = [
            Message(message.role, _marked_around(i, message.content))
            for i, message in enumerate(messages)
        ]
        found = self._marks(marked, text)
        if found is None:
            return None
        places: list[_Place | None] = []
        for i in range(len(messages)):
            start, stop = found.get((_OPEN, i)), found.get((_CLOSE, i))
            if stop is None and start is not None:
                return None
            places.append(None if stop is None else _Place(start, stop))
        return places

    def _around_marks(self, messages: Sequence[Message], text: str) -> "list[_Place | None] | None":
        """Find contents by a mark in the middle, for templates that look at how contents begin."""
        cores = [message.content.strip() for message in messages]
        halves = [len(core) // 2 for core in cores]
        marked = [
            Message(message.role, core[:half] + _mark(_OPEN, i) + core[half:] if core else "")
            for i, (message, core, half) in enumerate(zip(messages, cores, halves, strict=True))
        ]
        found = self._marks(marked, text)
        if found is None:
            return None
        places: list[_Place | None] = []
        for i, (core, half) in enumerate(zip(cores, halves, strict=True)):
            start = found[_OPEN, i] - half if (_OPEN, i) in found else None
            if start is not None and not text.startswith(core, max(start, 0)):
                return None
            places.append(None if start is None else _Place(start, start + len(core)))
        return places

    def _marks(self, marked: Sequence[Message], text: str) -> dict[tuple[str, int], int] | None:
        """Render with marks; return where, or None if they change the text or stand twice."""
        try:
            rendered = self.render(marked)
        except DropError:
            return None
        found: dict[tuple[str, int], int] = {}
        parts: list[str] = []
        position = length = 0
        for match in _MARK.finditer(rendered):
            parts.append(rendered[position : match.start()])
            length += len(parts[-1])
            position = match.end()
            key = match[1], int("".join(str(ord(digit) - _ZERO) for digit in match[2]))
            if key in found:
                return None
            found[key] = length
        parts.append(rendered[position:])
        return found if "".join(parts) == text else None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a content lies; `start` is None where the template rewrote how it begins."""

    start: int | None
    stop: int

    @property
    def begin(self) -> int:
        return self.stop if self.start is None else self.start

    def touches(self, start: int, stop: int) -> bool:
        return min(self.begin, self.stop - 1) < stop and start < self.stop


@dataclass(slots=True)
class _Draft:
    """What is known of a rendered conversation so far.

    Attributes:
        borders: where messages[:i] end, None where they are not how the text begins.
        answers: where trained answers begin and where their end-of-turn must have come.
        places: where contents lie.
    """

    messages: tuple[Message, ...]
    text: str
    borders: list[int | None]
    answers: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    places: list[_Place | None] = field(default_factory=list[_Place | None])

    @property
    def shown(self) -> list[int]:
        """The messages that are in the text, or have no text of their own."""
        contents = (message.content.strip() for message in self.messages)
        both = enumerate(zip(self.places, contents, strict=True))
        return [i for i, (place, content) in both if place or not content]


def _blocks(draft: _Draft, starts: list[int]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    stops = [*starts[1:], len(draft.text)]
    for i, start, stop in zip(draft.shown, starts, stops, strict=True):
        place, answer = draft.places[i], draft.answers.get(i)
        data = (place.start, place.stop) if place and place.start is not None else None
        content = data or (stop, stop)
        if place and answer and not (data and draft.text[answer[0] : data[0]].strip()):
            content = answer[0], place.stop
        role = draft.messages[i].role
        blocks.append(Block(i, role, start, stop, content, data, answer))
    return tuple(blocks)


_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RESERVED = frozenset(
    {"conversation", "messages", "chat_template", "add_generation_prompt", "tokenize"}
    | {"continue_final_message", "sanitize_control_tokens", "tokenizer_kwargs", "return_dict"}
    | {"return_tensors", "return_assistant_tokens_mask", "padding", "truncation", "max_length"}
)

# Unicode keeps these code points out of text for ever; a mark is a kind, a number and an end.
_ANY_MARK = re.compile("[\ufdd0-\ufdef]")
_MARK = re.compile("([\ufdd0\ufdd1])([\ufdd6-\ufddf]+)\ufdd2")
_OPEN, _CLOSE, _END, _ZERO = "\ufdd0", "\ufdd1", "\ufdd2", 0xFDD6


def _mark(kind: str, index: int) -> str:
    return kind + "".join(chr(_ZERO + int(digit)) for digit in str(index)) + _END


def _marked_around(index: int, content: str) -> str:
    core = content.strip()
    if not core:
        return content
    start = content.index(core)
    before, after = content[:start], content[start + len(core) :]
    return before + _mark(_OPEN, index) + core + _mark(_CLOSE, index) + after


def _dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
