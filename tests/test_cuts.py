"""The tokens before which skips may fall, from segments and sentences written by hand."""

import numpy as np
import pytest
from jaxtyping import Int

from skipalign.cuts import block_borders, draw_within, last_turn, sentences, tokens_within
from skipalign.encoding import Example, Segment

# A question with one header token, its answer with an end-of-turn, and a question behind it.
TURNS = (
    Segment(0, 6, "user", 1, 6),
    Segment(6, 10, "assistant", 7, 9),
    Segment(10, 14, "user", 11, 14),
)


def sample(segments: tuple[Segment, ...], breaks: list[int]) -> Example:
    ids: Int[np.ndarray, " T"] = np.arange(segments[-1].stop)
    return Example(ids, ids, segments, np.array(breaks, np.int64), "made", "test")


@pytest.mark.parametrize(
    ("skip_at", "expected"),
    [("inner", [6]), ("outer", [10]), ("all", [6, 10]), ("none", []), ("token", [])],
)
def test_blocks_have_the_borders_of_each_mode(skip_at: str, expected: list[int]):
    assert block_borders(TURNS, [skip_at]).tolist() == expected


def test_swapping_two_segments_changes_where_skips_fall():
    user, assistant = Segment(0, 9, "user", 0, 9), Segment(9, 14, "assistant", 9, 14)
    swapped = (
        Segment(0, 5, "assistant", 0, 5),
        Segment(5, 14, "user", 5, 14),
    )
    assert block_borders((user, assistant), ["inner"]).tolist() == [9]
    assert block_borders(swapped, ["inner"]).tolist() == []
    assert block_borders(swapped, ["outer"]).tolist() == [5]


def test_a_sentence_begins_at_its_break_and_at_every_block_but_the_first():
    assert sentences(sample(TURNS, [4, 6, 12])).tolist() == [4, 6, 10, 12]


def test_tokens_within_tear_nothing_off_a_header_or_an_end():
    assert tokens_within(TURNS).tolist() == [2, 3, 4, 5, 8, 12, 13]


@pytest.mark.parametrize("num_cuts", [1, 2, 5])
def test_cuts_within_are_different_and_take_sentences_first(num_cuts: int):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cuts = draw_within(sample(TURNS, [4, 12]), num_cuts, "sentence", rng).tolist()
        assert len(set(cuts)) == len(cuts) == num_cuts
        assert len({4, 12} & set(cuts)) == min(num_cuts, 2)


def test_no_more_cuts_are_drawn_than_there_are_tokens():
    for cut_at in ("sentence", "token"):
        cuts = draw_within(sample(TURNS, [4]), 99, cut_at, np.random.default_rng(0))
        assert sorted(cuts.tolist()) == tokens_within(TURNS).tolist()


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (["system", "user", "assistant"], 2),
        (["user", "assistant", "user", "assistant"], 2),
        (["user", "user", "assistant"], 1),
        (["document"], 1),
        (["assistant"], 1),
        (["assistant", "user"], 2),
    ],
)
def test_the_last_turn_stands_behind_a_context(roles: list[str], expected: int):
    segments = tuple(Segment(n, n + 1, role, n, n + 1) for n, role in enumerate(roles))
    assert last_turn(segments) == expected
