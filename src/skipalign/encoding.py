"""Conversation -> Example: token ids, what is trained, and the blocks, by the chat template.

The text that the model reads is what the tokenizer's own template renders, tokenised once;
template.py finds the messages in it, in characters, and this room turns them into tokens.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from skipalign.conversation import Conversation, Message
from skipalign.errors import RecipeError
from skipalign.shortening import latest, shortened, too_long
from skipalign.template import DEFAULT_TEMPLATE as DEFAULT_TEMPLATE
from skipalign.template import DEFAULT_TEMPLATE_NAME as DEFAULT_TEMPLATE_NAME
from skipalign.template import Block, NotPrefixError, Rendered, Template
from skipalign.tokens import DataTokenizer, DropError, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Segment:
    """One block of a conversation: a message with the template tokens around it, in tokens.

    Segments of a sample are gapless from 0 to T. `[start, content_start)` is the template's
    header, `[content_start, content_stop)` the message's own text, the rest its end-of-turn.
    """

    start: int
    stop: int
    role: str
    content_start: int
    content_stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One training sample.

    `breaks` are the token indices, inside contents, at which a sentence or a paragraph begins.
    """

    input_ids: Int[np.ndarray, " T"]
    labels: Int[np.ndarray, " T"]
    segments: tuple[Segment, ...]
    breaks: Int[np.ndarray, " N"]
    id: str
    source: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one conversation: examples, or the reason why there are none.

    `dropped` is None or one of: template_refused (the template raised), not_a_prefix (no answer is
    rendered as inference would see it), content_not_found, generation_block (it holds other text
    than one answer), special_text (it cannot be made ordinary), too_long, too_many_messages (in one
    turn), no_trained_token.
    `detail` says more, also of answers that a split conversation lost. `notes` counts:

    - special_text: special tokens in contents that were written as ordinary text
    - turns_over_limit: early turns dropped where a conversation has over 1,000 messages, or an
      answer that became an example of its own over 100
    - split_per_turn: 1 where each answer became an example of its own
    - answers_dropped: answers of a split conversation that could not be kept
    - early_turns_dropped, middle_cut: turns dropped, user messages cut to fit `max_tokens`
    - document_pieces: the pieces of a document longer than `max_tokens`
    - message_left_out: messages that the template does not render
    - answer_not_marked: answers without a `{% generation %}` block, not trained
    - no_end_of_turn: answers after which the template puts no special token to stop at
    - merged_border: answers whose first characters share a token with the header, not trained
    """

    examples: tuple[Example, ...]
    dropped: str | None
    detail: str
    notes: dict[str, int]


class Encoder:
    """Encode conversations with the tokenizer's chat template, each into its examples.

    - Content is data: what would become a special token becomes ordinary tokens. Every other row
      has the ids of `tokenizer.apply_chat_template`.
    - Segments: one per message. BOS and a system prompt that the template writes on its own are
      header of the first message, white space around a content is template. Where no rendered
      prefix ends between two contents, the first special token there closes the earlier message;
      without one, all of it does. A message that the template does not render has no segment; one
      without text is all header.
    - Loss: from the end of the generation prompt (or the start of the `{% generation %}` block)
      through the first special token after the answer, and on nothing after it; without such a
      token through the last character that is not white space. A token that begins before the
      answer is not trained, nor one that reaches into the next message's content.
    - Where the text up to an answer is not a prefix of the whole (thinking templates drop earlier
      reasoning), each answer becomes an example of its own that ends with it, the loss on that
      answer alone. A template with `{% generation %}` is taken at its word.
    - Longer than `max_tokens`: the earliest turns go while more than one is left, the system
      message stays; then the longest user message loses its middle, without a mark.
    - A document has no template: BOS if the tokenizer adds one, text, EOS, the loss on all; cut
      into consecutive pieces of `max_tokens` where longer, nothing lost or added.

    Attributes:
        template: the Jinja text in use, which belongs with the trained model.
        template_name: "tokenizer" or DEFAULT_TEMPLATE_NAME.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_tokens: the longest example.
        template_kwargs: what the template takes besides messages, such as `enable_thinking`.

    Raises:
        ModelError: the tokenizer has no character offsets, no EOS where one is needed, or a
            template that is not Jinja.
        RecipeError: `max_tokens` or `template_kwargs` cannot be used.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_tokens: int,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if max_tokens < 3:
            raise RecipeError(f"max_tokens is {max_tokens}; it must be at least 3")
        self.max_tokens = max_tokens
        self._tokenizer = DataTokenizer(tokenizer)
        self._template = Template(tokenizer, self._tokenizer, template_kwargs or {})
        self.template = self._template.text
        self.template_name = self._template.name

    def encode(self, conversation: Conversation) -> Encoded:
        """Encode one conversation."""
        return self.encode_many([conversation])[0]

    def encode_many(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """Encode conversations, tokenised together: faster than one by one."""
        plans = [self._plan(conversation.messages) for conversation in conversations]
        waiting = [each for plan in plans for each in plan.rendered if each.tokens is None]
        fresh = iter(self._tokenizer.tokenize([each.text for each in waiting]))
        return [
            self._finish(conversation, plan, fresh)
            for conversation, plan in zip(conversations, plans, strict=True)
        ]

    def _plan(self, messages: tuple[Message, ...]) -> "_Plan":
        """Return what to tokenise: one text, or one for each answer where prefixes differ."""
        if messages[0].role == "document":
            return _Plan([_whole_document(messages)])
        try:
            messages, num_gone = latest(messages, _MOST_MESSAGES)
        except DropError as error:
            return _Plan(lost=[error])
        plan = self._plan_turns(messages)
        plan.num_gone += num_gone
        return plan

    def _plan_turns(self, messages: tuple[Message, ...]) -> "_Plan":
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        try:
            return _Plan([self._template.locate(messages)])
        except NotPrefixError as error:
            if answers == [len(messages) - 1]:
                return _Plan(lost=[error])
        except DropError as error:
            return _Plan(lost=[error])
        plan = _Plan(split=True)
        for i in answers:
            try:
                kept, num_gone = latest(messages[: i + 1], _MOST_BEFORE)
                plan.rendered.append(self._template.locate(kept, last_only=True))
                plan.num_gone += num_gone
            except DropError as error:
                plan.lost.append(error)
        return plan

    def _finish(
        self, conversation: Conversation, plan: "_Plan", fresh: Iterator[Tokens]
    ) -> Encoded:
        notes: Counter[str] = Counter(
            split_per_turn=int(plan.split), turns_over_limit=plan.num_gone
        )
        examples: list[Example] = []
        for each in plan.rendered:
            raw = next(fresh) if each.tokens is None else each.tokens
            own: Counter[str] = Counter()
            try:
                examples += self._examples(each, raw, own)
                notes += own
            except DropError as error:
                plan.lost.append(error)
        detail = plan.lost[0].detail if plan.lost else ""
        if not examples:
            return Encoded((), plan.lost[0].reason, detail, {})
        notes["answers_dropped"] = len(plan.lost)
        several = plan.split or len(examples) > 1
        names = [
            f"{conversation.id}.{n}" if several else conversation.id for n in range(len(examples))
        ]
        named = (
            replace(example, id=name, source=conversation.source)
            for example, name in zip(examples, names, strict=True)
        )
        return Encoded(tuple(named), None, detail, dict(+notes))

    def _examples(self, rendered: Rendered, raw: Tokens, notes: Counter[str]) -> list[Example]:
        tokens = self._as_data(rendered, raw)
        if rendered.blocks[0].role == "document":
            examples = self._pieces(rendered, tokens, notes)
        else:
            rendered, tokens = self._fit(rendered, tokens, notes)
            examples = [_example(rendered, tokens, notes)]
        notes["special_text"] += tokens.special
        notes["message_left_out"] += rendered.left_out
        notes["answer_not_marked"] += rendered.not_marked
        # The first label is never read: nothing precedes it that could predict it.
        if not any((example.labels[1:] != IGNORE_INDEX).any() for example in examples):
            raise DropError("no_trained_token", "no token of it would be trained")
        return examples

    def _as_data(self, rendered: Rendered, raw: Tokens | None = None) -> Tokens:
        if raw is None:
            raw = rendered.tokens
        if raw is None:
            raw = self._tokenizer.tokenize([rendered.text])[0]
        spans = [block.data for block in rendered.blocks if block.data]
        return self._tokenizer.as_data(rendered.text, spans, raw)

    def _pieces(self, rendered: Rendered, tokens: Tokens, notes: Counter[str]) -> list[Example]:
        """Return a document in consecutive pieces of `max_tokens`, most often one."""
        bos, eos = self._tokenizer.document_ends()
        ids = np.concatenate([bos, tokens.ids, eos])
        breaks = _breaks(rendered, tokens) + len(bos)
        cuts = [*range(0, len(ids), self.max_tokens), len(ids)]
        if len(cuts) > 2:
            notes["document_pieces"] += len(cuts) - 1
            # A last piece of one token would have nothing to train.
            cuts[-2] -= int(cuts[-1] - cuts[-2] == 1)
        examples: list[Example] = []
        for start, stop in pairwise(cuts):
            first = max(len(bos) - start, 0)
            last = max(min(stop, len(ids) - 1) - start, first)
            inside = breaks[(breaks > start + first) & (breaks < start + last)] - start
            segment = Segment(0, stop - start, "document", first, last)
            piece = ids[start:stop]
            examples.append(Example(piece, piece.copy(), (segment,), inside, "", ""))
        return examples

    def _fit(
        self, rendered: Rendered, tokens: Tokens, notes: Counter[str]
    ) -> tuple[Rendered, Tokens]:
        """Shorten until it fits, measuring anew each time: a cut changes how tokens merge."""
        for _ in range(_MAX_CUTS):
            excess = len(tokens) - self.max_tokens
            if excess <= 0:
                return rendered, tokens
            messages = shortened(rendered, tokens, excess, notes)
            rendered = self._template.locate(messages, last_only=rendered.last_only)
            tokens = self._as_data(rendered)
        raise too_long(tokens, self.max_tokens)


_MAX_CUTS = 32
# The template is rendered up to every message, in time that grows with the square of their number:
# 1,000 messages take seconds, and so do 100 answers that are split with 100 messages each.
_MOST_MESSAGES, _MOST_BEFORE = 1000, 100


@dataclass(slots=True)
class _Plan:
    """What one conversation becomes: texts to tokenise, and what was already lost."""

    rendered: list[Rendered] = field(default_factory=list[Rendered])
    lost: list[DropError] = field(default_factory=list[DropError])
    split: bool = False
    num_gone: int = 0


def _whole_document(messages: tuple[Message, ...]) -> Rendered:
    text = messages[0].content
    whole = (0, len(text))
    return Rendered(messages, text, (Block(0, "document", 0, len(text), whole, whole),))


# --- characters -> tokens -----------------------------------------------------------------------


def _example(rendered: Rendered, tokens: Tokens, notes: Counter[str]) -> Example:
    labels = np.full_like(tokens.ids, IGNORE_INDEX)
    segments: list[Segment] = []
    for block, after in zip(rendered.blocks, (*rendered.blocks[1:], None), strict=True):
        start = tokens.first_from(block.start) if segments else 0
        stop = tokens.first_from(block.stop) if after else len(tokens)
        if start == stop:
            continue
        inner, outer = (min(max(tokens.first_from(c), start), stop) for c in block.content)
        segments.append(Segment(start, stop, block.role, inner, outer))
        if block.answer:
            first, last = _trained(rendered.text, block, tokens, notes)
            limit = after.content[0] if after else len(rendered.text)
            last = min(last, int(np.searchsorted(tokens.stops, limit, side="right")))
            labels[first:last] = tokens.ids[first:last]
    return Example(tokens.ids, labels, tuple(segments), _breaks(rendered, tokens), "", "")


def _trained(text: str, block: Block, tokens: Tokens, notes: Counter[str]) -> tuple[int, int]:
    """Return the range of tokens that are an answer and its end-of-turn."""
    assert block.answer
    assert tokens.control is not None
    begin, limit = block.answer
    first, after, end = (tokens.first_from(c) for c in (begin, block.content[1], limit))
    notes["merged_border"] += int(first > 0 and tokens.stops[first - 1] > begin)
    ends = tokens.control[(tokens.control >= after) & (tokens.control < end)]
    if len(ends):
        return first, int(ends[0]) + 1
    notes["no_end_of_turn"] += 1
    rest = text[block.content[1] : limit].rstrip()
    return first, tokens.first_from(block.content[1] + len(rest))


_BREAK = re.compile(
    r"""(?: [.!?。！？…] ["'”’»)\]」』）]* \s+
          | \n \s*
          | [。！？]++ ["'”’»)\]」』）]*+ )
        (?=\S)""",
    re.VERBOSE,
)
"""The end of a sentence or paragraph: where the match ends, the next one begins."""


def _breaks(rendered: Rendered, tokens: Tokens) -> Int[np.ndarray, " N"]:
    """Return the tokens, strictly inside contents, with which sentences and paragraphs begin."""
    found: list[int] = []
    for block in rendered.blocks:
        start, stop = block.data or block.content
        stop = start + len(rendered.text[start:stop].rstrip())
        first, last = (tokens.first_from(character) for character in block.content)
        characters = [match.end() for match in _BREAK.finditer(rendered.text, start, stop)]
        indices = np.searchsorted(tokens.stops, characters, side="right").tolist()
        # A token may begin with the white space before a sentence, not with the end of another.
        found += [
            i
            for i, character in zip(indices, characters, strict=True)
            if first < i < last and not rendered.text[tokens.starts[i] : character].strip()
        ]
    return np.unique(np.array(found, np.int32))
