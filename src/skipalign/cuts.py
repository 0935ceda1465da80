"""Where skips may fall: the tokens of a sample before which its ids may skip.

A cut is named by the token behind it. Blocks are the segments of a conversation; the text of a
block, its content, lies between the template's header and end-of-turn.

Shape letters: K cuts, N candidates for a cut.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from skipalign.encoding import Example, Segment


def block_borders(segments: Sequence[Segment], skip_at: Sequence[str]) -> Int[np.ndarray, " K"]:
    """Return the first tokens of the blocks before which `skip_at` lets a skip fall.

    `inner`: an answer behind anything else; `outer`: whatever follows an answer; `all`: every block
    but the first.
    """
    cuts: list[int] = []
    for before, after in pairwise(segments):
        inner = after.role == "assistant" and before.role != "assistant"
        outer = before.role == "assistant"
        if "all" in skip_at or (inner and "inner" in skip_at) or (outer and "outer" in skip_at):
            cuts.append(after.start)
    return np.array(cuts, np.int64)


def sentences(example: Example) -> Int[np.ndarray, " K"]:
    """Return where the second and every further sentence begins; a block begins one as well."""
    return np.union1d(block_borders(example.segments, ["all"]), example.breaks)


def tokens_within(segments: Sequence[Segment]) -> Int[np.ndarray, " N"]:
    """Return the tokens strictly inside contents, before which no template token is torn off."""
    insides = [np.arange(s.content_start + 1, s.content_stop) for s in segments]
    return np.concatenate(insides)


def draw_within(
    example: Example, num_cuts: int, cut_at: str, rng: np.random.Generator
) -> Int[np.ndarray, " K"]:
    """Draw `num_cuts` different cuts inside contents, or as many as there are.

    `cut_at`: `sentence` takes beginnings of sentences first, then tokens; `token` takes any token.
    """
    chosen = np.zeros(0, np.int64)
    if cut_at == "sentence":
        chosen = _draw_some(example.breaks, num_cuts, rng)
    missing = num_cuts - len(chosen)
    if missing:
        others = tokens_within(example.segments)
        others = others[~np.isin(others, chosen)] if len(chosen) else others
        chosen = np.concatenate([chosen, _draw_some(others, missing, rng)])
    return chosen


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
