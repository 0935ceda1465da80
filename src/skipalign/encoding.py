"""Conversation -> Example: token ids, what is trained, and the blocks, by the chat template."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

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
