"""Too many tokens -> the messages that are kept: early turns go, then the middle of a question.

An answer is never cut, nor is the system's message: where that is not enough, the row is dropped.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from skipalign.conversation import Message
from skipalign.template import Rendered
from skipalign.tokens import DropError, Tokens


def shortened(
    rendered: Rendered, tokens: Tokens, excess: int, notes: Counter[str]
) -> tuple[Message, ...]:
    """Return the messages of a conversation with about `excess` tokens less.

    Early turns go while more than one is left; then the longest user message loses its middle.

    Args:
        rendered: the conversation.
        tokens: of its text.
        excess: how many there are too many.
        notes: counts `early_turns_dropped`, or has `middle_cut`.

    Raises:
        DropError: no user message has so much to lose.
    """
    turns = _turns(rendered.messages)
    if len(turns) > 1:
        gone = _early_turns(rendered, tokens, turns, excess)
        notes["early_turns_dropped"] += gone
        return rendered.messages[: turns[0]] + rendered.messages[turns[gone] :]
    messages = _cut_middle(rendered, tokens, excess)
    notes["middle_cut"] = 1
    return messages


def latest(messages: tuple[Message, ...], most: int) -> tuple[tuple[Message, ...], int]:
    """Return the system's and the last messages, `most` at most, and how many turns are gone.

    Raises:
        DropError: the last turn alone has more.
    """
    if len(messages) <= most:
        return messages, 0
    first, *later = _turns(messages)
    for number, turn in enumerate(later, 1):
        if first + len(messages) - turn <= most:
            return (*messages[:first], *messages[turn:]), number
    raise DropError("too_many_messages", f"its last turn has over {most:,} messages; shorten it")


def too_long(tokens: Tokens, max_tokens: int) -> DropError:
    """Return the reason why a row is dropped that nothing more may be cut from."""
    return DropError(
        "too_long",
        f"{len(tokens)} tokens are left and max_tokens is {max_tokens}; only early turns and the "
        "middle of user messages are ever cut - raise max_tokens",
    )


def _turns(messages: Sequence[Message]) -> list[int]:
    """Return where turns begin: a user message and what follows it, after the system's."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), 0)
    later = range(first + 1, len(messages))
    return [first, *(i for i in later if messages[i].role == "user" != messages[i - 1].role)]


def _early_turns(rendered: Rendered, tokens: Tokens, turns: list[int], excess: int) -> int:
    """Return how many turns to drop: no more than `excess` needs, and never the last."""
    begins = {block.index: tokens.first_from(block.start) for block in rendered.blocks}
    first = begins.get(turns[0], 0)
    for number, turn in enumerate(turns[1:-1], 1):
        if begins.get(turn, first) - first >= excess:
            return number
    return len(turns) - 1


def _cut_middle(rendered: Rendered, tokens: Tokens, excess: int) -> tuple[Message, ...]:
    """Return the messages with the middle of the longest user message cut out."""
    asked = [block for block in rendered.blocks if block.role == "user" and block.data]
    places = [[tokens.first_from(edge) for edge in block.content] for block in asked]
    longest = max(range(len(asked)), key=lambda n: places[n][1] - places[n][0], default=None)
    if longest is None:
        raise too_long(tokens, len(tokens) - excess)
    block, (start, stop) = asked[longest], places[longest]
    keep = stop - start - excess
    if keep < 2:
        raise too_long(tokens, len(tokens) - excess)
    content = rendered.messages[block.index].content.strip()
    # Where the template escapes content, its text is longer than the content.
    scale = len(content) / (block.content[1] - block.content[0])
    edges = start + (keep + 1) // 2, stop - keep // 2
    head, tail = (int((tokens.starts[edge] - block.content[0]) * scale) for edge in edges)
    shorter = content[:head] + content[max(tail, head + 1) :]
    if not shorter.strip():
        raise too_long(tokens, len(tokens) - excess)
    message = replace(rendered.messages[block.index], content=shorter)
    return (*rendered.messages[: block.index], message, *rendered.messages[block.index + 1 :])
