"""Strategies, with four kinds of test for each.

- Drawing: the doctest of its class, and a recorded array.
- Properties: what holds for every sample, range and seed (hypothesis).
- Distribution: many draws against the closed form, by chi-square.
- Parity: the published rule once more, token by token in plain Python, written from its formula; it
  asks the generator for the same numbers and has to come to the same ids.

A strategy has one section, which enters it into METHODS; the tests at the end are for all of them.
"""

import doctest
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int

from skipalign import positions
from skipalign.cuts import tokens_within
from skipalign.encoding import Example, Segment
from skipalign.errors import DataError, RecipeError
from skipalign.positions import (
    EIGHT_TOKENS,
    STRATEGIES,
    Contiguous,
    Cream,
    Logo,
    LongRecipe,
    PoSE,
    PoSEAtMarkers,
    RandPos,
    SkipAlign,
    Strategy,
    drawing,
    sample_rng,
)

Rng = np.random.Generator
Rule = Callable[[Example, int, Rng], list[int]]
PlainLaw = Callable[[int, int, Rng], list[int]]
ALWAYS = {"skip_fraction": 1.0}


# ------------------------------------------------------------------------------ means


@dataclass(frozen=True)
class Method:
    """One setting of a strategy and what is known about it.

    Attributes:
        strategy: its class with a max_position.
        rule: the published rule: the sample, max_position, the generator -> ids. It is asked for
            samples that skip. None where nothing is published.
        cuts: the tokens of a sample before which a skip may fall.
        most_skips: how many skips a sample has at most.
        recorded: the ids of EIGHT_TOKENS in [0, 100), drawn by `sample_rng(0, 0, "b")`.
        starts_at_zero: whether the first id is 0.
    """

    strategy: Callable[[int], Strategy]
    rule: Rule | None
    cuts: Callable[[Example], Iterable[int]]
    recorded: list[int]
    most_skips: float = math.inf
    starts_at_zero: bool = True


METHODS: dict[str, Method] = {}
REFUSED: list[tuple[Callable[[], Strategy], str]] = []


def conversation(lengths: list[int], header: int = 0) -> tuple[Segment, ...]:
    """Return alternating user and assistant segments, each with `header` template tokens."""
    stops = np.cumsum([length + header for length in lengths]).tolist()
    starts = [0, *stops[:-1]]
    return tuple(
        Segment(start, stop, ("user", "assistant")[index % 2], start + header, stop)
        for index, (start, stop) in enumerate(zip(starts, stops, strict=True))
    )


def sample(segments: tuple[Segment, ...], breaks: Int[np.ndarray, " N"] | None = None) -> Example:
    """Return a sample of these segments; token n has the id n, and no sentence begins."""
    ids = np.arange(segments[-1].stop)
    breaks = np.zeros(0, np.int64) if breaks is None else breaks
    return Example(ids, ids, segments, breaks, "made", "test")


def draws(strategy: Strategy, example: Example, count: int) -> Int[np.ndarray, "N T"]:
    """Return the ids of `count` samples."""
    rows = [strategy.positions(example, sample_rng(0, 0, str(number))) for number in range(count)]
    return np.array(rows)


def skips(ids: Int[np.ndarray, " T"]) -> set[int]:
    """Return the tokens before which ids are left out."""
    return set((np.flatnonzero(np.diff(ids) > 1) + 1).tolist())


def gaps(rows: Int[np.ndarray, "N T"], *cuts: int) -> list[tuple[int, ...]]:
    """Return how many ids are left out before each of the tokens `cuts`, row by row."""
    steps = np.diff(rows, axis=1) - 1
    return [tuple(row) for row in steps[:, [cut - 1 for cut in cuts]].tolist()]


def assert_follows(seen: Iterable[Hashable], law: dict[Hashable, float]) -> None:
    """Compare draws with the probability of every outcome, by chi-square.

    Its mean is the degrees of freedom, its variance twice that: six deviations are allowed.
    """
    counts = Counter(seen)
    total = counts.total()
    assert set(counts) <= set(law)
    assert sum(law.values()) == pytest.approx(1)
    common = {cell: share for cell, share in law.items() if total * share >= 5}
    cells = [(counts[cell], total * share) for cell, share in common.items()]
    if rest := total * (1 - sum(common.values())):
        cells.append((total - sum(counts[cell] for cell in common), rest))
    cells = [(count, expected) for count, expected in cells if expected >= 5]
    assert sum(count for count, _ in cells) > 0.98 * total
    chi_square = sum((count - expected) ** 2 / expected for count, expected in cells)
    freedom = len(cells) - 1
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


# ------------------------------------------------------------------------------ Contiguous


METHODS["contiguous"] = Method(
    strategy=lambda max_position: Contiguous(),
    rule=None,
    cuts=lambda example: (),
    recorded=[0, 1, 2, 3, 4, 5, 6, 7],
    most_skips=0,
)


def test_contiguous_draws_nothing():
    rng = sample_rng(0, 0, "a")
    before = rng.bit_generator.state["buffer_pos"], rng.bit_generator.state["state"]["counter"]
    assert Contiguous().positions(EIGHT_TOKENS, rng).tolist() == list(range(8))
    after = rng.bit_generator.state["buffer_pos"], rng.bit_generator.state["state"]["counter"]
    assert before[0] == after[0]
    assert np.array_equal(before[1], after[1])


# ------------------------------------------------------------------------------ RandPos


def plain_randpos(example: Example, max_position: int, rng: Rng) -> list[int]:
    taken = rng.choice(max_position, len(example.input_ids), replace=False, shuffle=False)
    return sorted(taken.tolist())


METHODS["randpos"] = Method(
    strategy=lambda top: RandPos(max_position=top),
    rule=plain_randpos,
    cuts=lambda example: range(1, len(example.input_ids)),
    recorded=[5, 7, 25, 40, 43, 58, 59, 89],
    starts_at_zero=False,
)


def test_randpos_takes_every_set_of_ids_equally_often():
    rows = draws(RandPos(max_position=6), sample(conversation([3])), 3000)
    law = dict.fromkeys(combinations(range(6), 3), 1 / 20)
    assert_follows([tuple(ids) for ids in rows.tolist()], law)


# ------------------------------------------------------------------------------ SkipAlign


def plain_borders(example: Example, *skip_at: str) -> list[int]:
    """Return the first tokens of the blocks before which Skip-Inner, -Outer or -All skip."""
    found: list[int] = []
    for before, after in pairwise(example.segments):
        answer = after.role == "assistant" and before.role != "assistant"
        next_turn = before.role == "assistant"
        if (
            "all" in skip_at
            or ("inner" in skip_at and answer)
            or ("outer" in skip_at and next_turn)
        ):
            found.append(after.start)
    return found


def plain_tokens(example: Example) -> list[int]:
    """Return the tokens whose predecessor belongs to the same text."""
    return [t for s in example.segments for t in range(s.start, s.stop) if inside(t, s)]


def inside(token: int, segment: Segment) -> bool:
    return segment.content_start < token < segment.content_stop


def stars(total: int, parts: int, rng: Rng) -> list[int]:
    """Draw which places of a row hold the bars; count the stars between them."""
    places = total + parts - 1
    bars = set(rng.choice(places, parts - 1, replace=False, shuffle=False).tolist())
    counts = [0]
    for position in range(places):
        if position in bars:
            counts.append(0)
        else:
            counts[-1] += 1
    return counts


def stars_and_bars(budget: int, parts: int, rng: Rng) -> list[int]:
    return stars(int(rng.integers(budget + 1)), parts, rng)


def sequential(budget: int, parts: int, rng: Rng) -> list[int]:
    found: list[int] = []
    for _ in range(parts):
        found.append(int(rng.integers(budget - sum(found) + 1)))
    return found


def plain_skipalign(*skip_at: str, law: PlainLaw = stars_and_bars) -> Rule:
    def rule(example: Example, max_position: int, rng: Rng) -> list[int]:
        borders = skipalign_cuts(*skip_at)(example)
        num_tokens = len(example.input_ids)
        if not borders:
            return list(range(num_tokens))
        lengths = dict(zip(borders, law(max_position - num_tokens, len(borders), rng), strict=True))
        ids: list[int] = []
        bias = 0  # u_k = u_(k-1) + s_k
        for token in range(num_tokens):
            bias += lengths.get(token, 0)
            ids.append(token + bias)
        return ids

    return rule


def skipalign_cuts(*skip_at: str) -> Callable[[Example], list[int]]:
    def cuts(example: Example) -> list[int]:
        within = plain_tokens(example) if "token" in skip_at else []
        return sorted({*plain_borders(example, *skip_at), *within})

    return cuts


def skipalign_method(
    *skip_at: str,
    recorded: list[int],
    law: str = "stars_and_bars",
    plain_law: PlainLaw = stars_and_bars,
) -> Method:
    return Method(
        strategy=lambda top: SkipAlign(max_position=top, skip_at=skip_at, law=law, **ALWAYS),
        rule=plain_skipalign(*skip_at, law=plain_law),
        cuts=skipalign_cuts(*skip_at),
        recorded=recorded,
    )


METHODS["skipalign inner"] = skipalign_method("inner", recorded=[0, 1, 2, 3, 4, 5, 95, 96])
METHODS["skipalign outer"] = skipalign_method("outer", recorded=[0, 1, 2, 3, 4, 5, 6, 7])
METHODS["skipalign all"] = skipalign_method("all", recorded=[0, 1, 2, 9, 10, 11, 95, 96])
METHODS["skipalign token"] = skipalign_method("token", recorded=[0, 7, 25, 26, 41, 44, 45, 96])
METHODS["skipalign all, sequential"] = skipalign_method(
    "all", recorded=[0, 1, 2, 92, 93, 94, 95, 96], law="sequential", plain_law=sequential
)
METHODS["skipalign all, 3 cuts within"] = Method(
    strategy=lambda top: SkipAlign(max_position=top, cuts_within=3, **ALWAYS),
    rule=None,
    cuts=lambda example: {*plain_borders(example, "all"), *plain_tokens(example)},
    recorded=[0, 3, 4, 20, 26, 27, 45, 46],
)
REFUSED += [
    (lambda: SkipAlign(max_position=0), "max_position is 0"),
    (lambda: SkipAlign(max_position=9, skip_fraction=1.5), "skip_fraction is 1.5"),
    (lambda: SkipAlign(max_position=9, skip_at=("inside",)), "'inside'; it takes inner"),
    (lambda: SkipAlign(max_position=9, law="gauss"), "'gauss'; it takes stars_and_bars"),
    (lambda: SkipAlign(max_position=9, cuts_within=-1), "cuts_within is -1"),
]


def test_skipalign_divides_a_uniform_total_evenly():
    # 6 free ids: a total of 0..6, and its total + 1 divisions over two borders equally likely.
    rows = draws(SkipAlign(max_position=14, **ALWAYS), EIGHT_TOKENS, 4000)
    law = {(a, b): 1 / 7 / (a + b + 1) for a in range(7) for b in range(7 - a)}
    assert_follows(gaps(rows, 3, 6), law)


def test_skip_fraction_is_the_share_of_samples_that_skip():
    rows = draws(SkipAlign(max_position=100_000, skip_fraction=0.3), EIGHT_TOKENS, 3000)
    skipped = rows[:, -1] > 7
    assert abs(skipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 3000)


@pytest.mark.parametrize("skip_at", ["inner", "outer", "all"])
def test_skipalign_skips_at_its_borders_only(skip_at: str):
    segments = (Segment(0, 4, "system", 1, 3), *_shifted(conversation([9, 5, 8, 6], header=2), 4))
    expected = {"inner": {1, 3}, "outer": {2}, "all": {0, 1, 2, 3}}[skip_at]
    # A border's index counts segments after the system text.
    borders = {segments[index + 1].start for index in expected}
    strategy = SkipAlign(max_position=5000, skip_at=(skip_at,), **ALWAYS)
    assert set.union(*map(skips, draws(strategy, sample(segments), 200))) == borders


def _shifted(segments: tuple[Segment, ...], by: int) -> tuple[Segment, ...]:
    return tuple(
        Segment(s.start + by, s.stop + by, s.role, s.content_start + by, s.content_stop + by)
        for s in segments
    )


@pytest.mark.parametrize("cut_at", ["token", "sentence"])
@pytest.mark.parametrize("skip_at", ["none", "token"])
def test_no_skip_falls_beside_template_tokens(cut_at: str, skip_at: str):
    segments = tuple(
        Segment(s.start, s.stop, s.role, s.start + 2, s.stop - 1)
        for s in conversation([12, 9, 30, 8])
    )
    strategy = SkipAlign(
        max_position=9000, skip_at=(skip_at,), cuts_within=5, cut_at=cut_at, **ALWAYS
    )
    for ids in draws(strategy, sample(segments, np.array([30, 35])), 200):
        for skip in skips(ids):
            home = next(s for s in segments if s.start <= skip < s.stop)
            assert inside(skip, home)


def test_cuts_within_prefer_sentences_and_fill_up_with_tokens():
    example = sample(conversation([100, 20]), np.array([10, 20, 30]))
    counts = {"enough": 3, "too few": 5}
    for name, cuts in counts.items():
        strategy = SkipAlign(max_position=10**6, skip_at=("none",), cuts_within=cuts, **ALWAYS)
        found = skips(strategy.positions(example, sample_rng(0, 0, name)))
        assert {10, 20, 30} <= found
        assert len(found) == cuts


# ------------------------------------------------------------------------------ PoSE


def plain_pose(num_chunks: int) -> Rule:
    def rule(example: Example, max_position: int, rng: Rng) -> list[int]:
        num_tokens = len(example.input_ids)
        if num_tokens == 1:
            return [0]
        if num_chunks == 2:
            borders = [int(rng.integers(1, (num_tokens + 1) // 2 + 1))]
        else:
            count = min(num_chunks, num_tokens) - 1
            borders = sorted(int(n) + 1 for n in rng.choice(num_tokens - 1, count, replace=False))
        ids: list[int] = []
        bias = 0  # u_0 = 0, u_i uniform in {u_(i-1)..P - T}
        for start, stop in pairwise([0, *borders, num_tokens]):
            bias = int(rng.integers(bias, max_position - num_tokens + 1)) if start else 0
            ids += [token + bias for token in range(start, stop)]
        return ids

    return rule


def pose_method(num_chunks: int, recorded: list[int]) -> Method:
    return Method(
        strategy=lambda top: PoSE(max_position=top, num_chunks=num_chunks),
        rule=plain_pose(num_chunks),
        cuts=lambda example: range(1, len(example.input_ids)),
        recorded=recorded,
        most_skips=num_chunks - 1,
    )


METHODS["pose 2"] = pose_method(2, recorded=[0, 1, 2, 3, 11, 12, 13, 14])
METHODS["pose 3"] = pose_method(3, recorded=[0, 40, 41, 42, 43, 44, 69, 70])
METHODS["pose 8"] = pose_method(8, recorded=[0, 69, 87, 91, 93, 96, 98, 99])
REFUSED.append((lambda: PoSE(max_position=9, num_chunks=1), "num_chunks is 1"))


def test_pose_of_two_chunks_follows_its_law():
    # 6 free ids. The first chunk has 1 to 4 of the 8 tokens; where the bias is 0, none is seen.
    rows = draws(PoSE(max_position=14), EIGHT_TOKENS, 4000)
    law = {(cut, bias): 1 / 4 / 7 for cut in range(1, 5) for bias in range(1, 7)}
    seen = [(min(skips(ids), default=0), ids[-1] - 7) for ids in rows]
    assert_follows(seen, {**law, (0, 0): 1 / 7})


def test_pose_of_three_chunks_follows_its_law():
    # Chunks of one token each, so that both biases are seen: u_1 in {0..4}, u_2 in {u_1..4}.
    rows = draws(PoSE(max_position=7, num_chunks=3), sample(conversation([3])), 3000)
    law = {(a, b - a): 1 / 5 / (5 - a) for a in range(5) for b in range(a, 5)}
    assert_follows(gaps(rows, 1, 2), law)


def test_borders_of_three_chunks_are_any_two_tokens():
    rows = draws(PoSE(max_position=10**9, num_chunks=3), sample(conversation([6])), 2000)
    law = dict.fromkeys(combinations(range(1, 6), 2), 1 / 10)
    assert_follows([tuple(sorted(skips(ids))) for ids in rows], law)


# ------------------------------------------------------------------------------ PoSEAtMarkers


def marked(example: Example) -> list[int]:
    """Return the tokens 3 and 5 of a sample; the first of them is none if it is token 0 or 1."""
    found = [index for index, token in enumerate(example.input_ids.tolist()) if token in (3, 5)]
    return [token for token in found if token != found[0] or token > 1]


def plain_markers(example: Example, max_position: int, rng: Rng) -> list[int]:
    cuts = set(marked(example))
    left = max_position - len(example.input_ids)
    ids: list[int] = []
    for token in range(len(example.input_ids)):
        gap = int(rng.integers(left + 1)) if token in cuts else 0
        left -= gap
        ids.append(ids[-1] + 1 + gap if ids else 0)
    return ids


METHODS["pose_markers"] = Method(
    strategy=lambda top: PoSEAtMarkers(max_position=top, markers=(3, 5)),
    rule=plain_markers,
    cuts=marked,
    recorded=[0, 1, 2, 92, 93, 94, 95, 96],
)
REFUSED += [
    (lambda: PoSEAtMarkers(max_position=9, markers=()), "markers are []; they are token ids"),
    (lambda: PoSEAtMarkers(max_position=9, markers=(7, -1)), "markers are [7, -1]"),
]


def test_pose_at_markers_halves_what_is_left():
    rows = draws(PoSEAtMarkers(max_position=14, markers=(3, 5)), EIGHT_TOKENS, 4000)
    law = {(a, b): 1 / 7 / (7 - a) for a in range(7) for b in range(7 - a)}
    assert_follows(gaps(rows, 3, 5), law)


@pytest.mark.parametrize(
    ("markers", "expected"),
    [((0, 4), {4}), ((1, 4), {4}), ((0, 1, 4), {1, 4}), ((2, 4), {2, 4}), ((9,), set())],
)
def test_only_the_first_marker_needs_two_tokens_before_it(
    markers: tuple[int, ...], expected: set[int]
):
    rows = draws(PoSEAtMarkers(max_position=1000, markers=markers), EIGHT_TOKENS, 50)
    assert set.union(*map(skips, rows)) == expected


# ------------------------------------------------------------------------------ Cream


def middle_ends(num_tokens: int, head: int, factor: int) -> tuple[int, int]:
    """Return the first and one past the last id at which the middle may end; factor in halves."""
    middle = num_tokens - 2 * head
    return head + (middle - 1) * factor // 2, num_tokens * factor // 2 - head


def plain_cream(example: Example, max_position: int, rng: Rng) -> list[int]:
    num_tokens = len(example.input_ids)
    if num_tokens < 3:
        return list(range(num_tokens))
    head = num_tokens // 3
    if rng.random() < 0.5:
        head = min(head, 4 * max_position // num_tokens)
    drawn = math.floor(rng.normal(1 + max_position / num_tokens, 3))
    factor = sorted((2, drawn, 2 * max_position // num_tokens))[1]
    last = int(rng.integers(*middle_ends(num_tokens, head, factor)))
    middle = range(last - (num_tokens - 2 * head) + 1, last + 1)
    return [*range(head), *middle, *range(max_position - head, max_position)]


def cream_cuts(example: Example) -> list[int]:
    num_tokens = len(example.input_ids)
    heads = range(1, num_tokens // 3 + 1)
    return [*heads, *(num_tokens - head for head in heads)]


METHODS["cream"] = Method(
    strategy=lambda top: Cream(max_position=top),
    rule=plain_cream,
    cuts=cream_cuts,
    recorded=[0, 1, 34, 35, 36, 37, 98, 99],
    most_skips=2,
)
REFUSED.append((lambda: Cream(max_position=9, std=-1.0), "std is -1"))


def factors(scale: int) -> dict[int, float]:
    """Return how probable each factor is: a normal of mean 1 + scale, deviation 3, clipped."""
    below = {
        factor: 0.5 * (1 + math.erf((factor - 1 - scale) / 3 / math.sqrt(2)))
        for factor in range(3, 2 * scale + 1)
    }
    edges = [0.0, *below.values(), 1.0]
    return {2 + index: high - low for index, (low, high) in enumerate(pairwise(edges))}


def gap_law(num_tokens: int, scale: int, head: int) -> dict[int, float]:
    """Return how probable each gap between head and middle is."""
    law: dict[int, float] = Counter()
    for factor, share in factors(scale).items():
        first, stop = middle_ends(num_tokens, head, factor)
        for last in range(first, stop):
            law[last - (num_tokens - head - 1)] += share / (stop - first)
    return law


def test_cream_draws_its_two_heads_equally_often_and_the_middle_by_its_law():
    # 48 tokens in [0, 96): head and tail of 48 // 3 = 16 or 4 x 96 / 48 = 8 tokens.
    rows = draws(Cream(max_position=96), sample(conversation([48])), 5000)
    long, short = (gap_law(48, 2, head) for head in (16, 8))
    law = {(0, gap, 48 - gap, 0): share / 2 for gap, share in long.items()}
    law |= {(gap, 0, 0, 48 - gap): share / 2 for gap, share in short.items()}
    seen = gaps(rows, 8, 16, 32, 40)
    assert_follows(seen, law)
    shorter = [first + last > 0 for first, _, _, last in seen]
    assert abs(np.mean(shorter) - 0.5) < 4 * 0.5 / np.sqrt(len(rows))


def test_cream_puts_the_middle_mostly_into_the_middle():
    # 3 tokens in [0, 48): the middle is one token, the factor is normal with mean 17.
    rows = draws(Cream(max_position=48), sample(conversation([3])), 5000)
    assert_follows([gap for (gap,) in gaps(rows, 1)], gap_law(3, 16, 1))


# ------------------------------------------------------------------------------ LongRecipe


def plain_longrecipe(example: Example, max_position: int, rng: Rng) -> list[int]:
    num_tokens = len(example.input_ids)
    starts = [0, *sentences(example)]
    texts = [list(range(a, b)) for a, b in pairwise([*starts, num_tokens])]
    slots: list[list[int]] = [[] for _ in range(max_position - num_tokens + len(texts))]
    chosen = sorted(rng.choice(len(slots), len(texts), replace=False, shuffle=False).tolist())
    for slot, text in zip([0, *chosen[1:]], texts, strict=True):
        slots[slot] = text
    ids: list[int] = []
    position = 0
    for text in slots:  # an empty slot is one position, a text as many as it has tokens
        ids += range(position, position + len(text))
        position += max(1, len(text))
    return ids


def sentences(example: Example) -> list[int]:
    """Return the tokens with which the second and every further sentence begins."""
    return sorted({*plain_borders(example, "all"), *example.breaks.tolist()})


METHODS["longrecipe"] = Method(
    strategy=lambda top: LongRecipe(max_position=top),
    rule=plain_longrecipe,
    cuts=sentences,
    recorded=[0, 1, 2, 27, 28, 43, 92, 93],
)


def test_longrecipe_chooses_its_slots_all_alike():
    # 3 sentences and 5 free ids in 8 slots. What lies before the first chosen slot joins the first
    # gap: a gap of g comes about in g + 1 ways.
    rows = draws(LongRecipe(max_position=8), sample(conversation([1, 1, 1])), 4000)
    law = {(a, b): (a + 1) / math.comb(8, 3) for a in range(6) for b in range(6 - a)}
    assert_follows(gaps(rows, 1, 2), law)


# ------------------------------------------------------------------------------ Logo


def last_turn_of(example: Example) -> int:
    """Return where the last of several questions begins, or the answer to a single one."""
    roles = [segment.role for segment in example.segments]
    role = "user" if roles.count("user") > 1 else "assistant"
    begins = [segment.start for segment in example.segments if segment.role == role]
    return (begins or [0])[-1] or len(example.input_ids)


def chunks_of(example: Example) -> list[range]:
    """Return the tokens of every chunk of at most 3 tokens."""
    context = range(last_turn_of(example))
    return [context[start : start + 3] for start in context[::3]]


def plain_logo(example: Example, max_position: int, rng: Rng) -> list[int]:
    num_tokens, chunks = len(example.input_ids), chunks_of(example)
    width = (max_position - num_tokens) // len(chunks)
    sparse = rng.random() < 0.5
    count = last_turn_of(example) if sparse else len(chunks)
    drawn = rng.integers(width + 1, size=count).tolist()
    ids: list[int] = []
    for index, chunk in enumerate(chunks):
        own = sorted(drawn[token] for token in chunk) if sparse else [drawn[index]] * len(chunk)
        ids += [token + index * width + bias for token, bias in zip(chunk, own, strict=True)]
    return ids + list(range(max_position - num_tokens + len(ids), max_position))


def logo(max_position: int, sparse_fraction: float = 0.0) -> Logo:
    return Logo(max_position=max_position, chunk_tokens=3, sparse_fraction=sparse_fraction)


METHODS["logo, half sparse"] = Method(
    strategy=lambda top: logo(top, 0.5),
    rule=plain_logo,
    cuts=lambda example: range(1, last_turn_of(example) + 1),
    recorded=[12, 21, 23, 51, 78, 79, 98, 99],
    starts_at_zero=False,
)
METHODS["logo, continuous"] = Method(
    strategy=logo,
    rule=None,
    cuts=lambda example: [chunk.stop for chunk in chunks_of(example)],
    recorded=[12, 13, 14, 69, 70, 71, 98, 99],
    starts_at_zero=False,
)
REFUSED += [
    (lambda: Logo(max_position=9, chunk_tokens=0), "chunk_tokens is 0"),
    (lambda: Logo(max_position=9, sparse_fraction=1.1), "sparse_fraction is 1.1"),
]


def test_logo_places_every_chunk_uniformly_in_its_bin_and_the_answer_at_the_end():
    # Two chunks of 3 tokens with 3 free ids each: bins 0..5 and 6..11, the answer at 12 and 13.
    rows = draws(logo(14), EIGHT_TOKENS, 3000)
    law = {(first, second): 1 / 16 for first in range(4) for second in range(6, 10)}
    assert_follows([(ids[0], ids[3]) for ids in rows.tolist()], law)
    assert np.all(rows[:, 6:] == [12, 13])


def test_logo_in_a_sparse_sample_draws_a_bias_for_every_token():
    # One chunk, three biases in {0..2}, drawn one by one and put in order.
    rows = draws(logo(5, 1.0), sample(conversation([3])), 3000)
    orders = Counter(tuple(sorted(each)) for each in product(range(3), repeat=3))
    law = {biases: count / 27 for biases, count in orders.items()}
    assert_follows([tuple(biases) for biases in (rows - np.arange(3)).tolist()], law)


def test_logo_of_the_paper_has_nine_continuous_samples_to_one_sparse():
    rows = draws(Logo(max_position=10**9), sample(conversation([300])), 2000)
    sparse = np.any(np.diff(rows) > 1, axis=1)
    assert abs(sparse.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 2000)


# ------------------------------------------------------------------------------ every strategy


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Draw a sample: any roles in any order, headers, ends, token ids and sentences."""
    lengths = st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 2)).filter(any)
    roles = st.sampled_from(["system", "user", "assistant", "document"])
    segments: list[Segment] = []
    for role, (header, text, end) in draw(
        st.lists(st.tuples(roles, lengths), min_size=1, max_size=12)
    ):
        start = segments[-1].stop if segments else 0
        first, last = start + header, start + header + text
        segments.append(Segment(start, last + end, role, first, last))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = sample(tuple(segments))
    within = tokens_within(segments)
    breaks = within[rng.random(len(within)) < rng.random()]
    return replace(made, input_ids=rng.integers(0, 6, len(made.input_ids)), breaks=breaks)


def assert_sound(method: Method, example: Example, max_position: int, seed: int) -> None:
    """Check everything that holds for any draw, parity with the published rule included."""
    strategy = method.strategy(max_position)
    num_tokens = len(example.input_ids)
    ids = strategy.positions(example, sample_rng(seed, 0, "x"))
    assert ids.dtype == np.int64
    assert len(ids) == num_tokens
    assert np.all(np.diff(ids) >= 1)
    assert ids[0] >= 0
    assert ids[-1] < max_position
    assert ids[0] == 0 or not method.starts_at_zero
    assert skips(ids) <= set(method.cuts(example))
    assert len(skips(ids)) <= method.most_skips
    assert np.array_equal(ids, strategy.positions(example, sample_rng(seed, 0, "x")))
    if max_position == num_tokens:
        assert np.array_equal(ids, np.arange(num_tokens))
    if method.rule:
        rng = sample_rng(seed, 0, "x")
        rng.random()  # whether the sample skips
        assert ids.tolist() == method.rule(example, max_position, rng)


@settings(max_examples=80, deadline=None)
@given(
    example=examples(),
    spare=st.sampled_from([0, 1, 7, 200, 5000]),
    seed=st.integers(0, 2**32),
)
def test_ids_rise_in_range_skip_at_their_cuts_and_follow_the_published_rule(
    example: Example, spare: int, seed: int
):
    for method in METHODS.values():
        assert_sound(method, example, len(example.input_ids) + spare, seed)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("max_position", [1, 2, 5000])
def test_a_sample_of_one_token(name: str, max_position: int):
    for role in ("system", "user", "assistant", "document"):
        example = sample((Segment(0, 1, role, 0, 1),))
        assert_sound(METHODS[name], example, max_position, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_hundreds_of_segments(name: str):
    segments = conversation([3] * 400)
    example = sample(segments, tokens_within(segments)[::2])
    example = replace(example, input_ids=example.input_ids % 6)
    for seed, max_position in enumerate((1200, 1300, 50_000)):
        assert_sound(METHODS[name], example, max_position, seed)


@pytest.mark.parametrize("name", METHODS)
def test_recorded_draws(name: str):
    """A change of these arrays changes every published run: it needs a changelog entry."""
    method = METHODS[name]
    found = method.strategy(100).positions(EIGHT_TOKENS, sample_rng(0, 0, "b"))
    assert found.tolist() == method.recorded


@pytest.mark.parametrize("name", METHODS)
def test_draws_depend_on_seed_epoch_and_sample_alone(name: str):
    strategy = METHODS[name].strategy(100_000)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "a"))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(first, strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "a")))
    others = [(1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "aa")]
    ids = {tuple(strategy.positions(EIGHT_TOKENS, sample_rng(*other))) for other in others}
    assert ids == {tuple(range(8))} or len({tuple(first), *ids}) > 3


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_longer_than_the_range_is_refused_with_both_numbers(name: str):
    strategy = METHODS[name].strategy(7)
    if isinstance(strategy, Contiguous):
        assert len(strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "a"))) == 8
        return
    with pytest.raises(DataError, match=r"8 tokens.*max_position 7"):
        strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "a"))


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Strategy], message: str):
    with pytest.raises(RecipeError, match=re.escape(message)):
        make()


def test_every_strategy_of_a_recipe_is_tested_here():
    tested = {type(method.strategy(9)) for method in METHODS.values()}
    assert tested == set(STRATEGIES.values())
    assert {strategy.name: strategy for strategy in tested} == STRATEGIES


def test_drawings_in_docstrings_are_what_the_code_draws():
    result = doctest.testmod(positions)
    assert result.attempted >= 2 * len(STRATEGIES) - 1
    assert result.failed == 0


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_every_docstring_draws_eight_tokens_and_names_its_source(strategy: type[Strategy]):
    text = strategy.__doc__ or ""
    columns = [line for line in text.splitlines() if len(line) == 4 + 8 * 4 + 2 * 2]
    assert any(line.replace("|", " ").split()[0].isdigit() for line in columns)
    assert "Source:" in text or strategy is Contiguous


def test_the_eight_tokens_are_gapless():
    segments = EIGHT_TOKENS.segments
    assert all(before.stop == after.start for before, after in pairwise(segments))
    assert segments[-1].stop == len(EIGHT_TOKENS.input_ids)
    assert drawing(np.arange(8), EIGHT_TOKENS) == "   0   1   2 |   3   4   5 |   6   7"


@pytest.mark.parametrize("value", [2**31, 10**30, 10**400])
@pytest.mark.parametrize("name", ["max_position", "chunk_tokens"])
def test_numbers_that_no_context_length_has_are_refused(name: str, value: int):
    with pytest.raises(RecipeError, match=f"strategy logo: {name} is .* at most 2,147,483,647"):
        Logo(**{"max_position": 4096, name: value})
