"""Strategies: their drawings, their properties, their distributions, and recorded draws."""

import doctest
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipalign import positions
from skipalign.encoding import Segment
from skipalign.errors import DataError, RecipeError
from skipalign.positions import (
    EIGHT_TOKENS,
    KEY_BIASES,
    LAWS,
    STRATEGIES,
    Contiguous,
    GapBias,
    NoiseBias,
    PermutedBias,
    PoSE,
    RandPos,
    SkipAlign,
    block_borders,
    divide,
    runs,
    sample_rng,
    tokens_within,
)

ALWAYS = {"skip_fraction": 1.0}


def conversation(lengths: list[int], header: int = 0) -> tuple[Segment, ...]:
    """Return alternating user and assistant segments, each with `header` template tokens."""
    stops = np.cumsum([length + header for length in lengths]).tolist()
    starts = [0, *stops[:-1]]
    return tuple(
        Segment(start, stop, ("user", "assistant")[index % 2], start + header, stop)
        for index, (start, stop) in enumerate(zip(starts, stops, strict=True))
    )


def every_strategy(max_position: int) -> list[positions.Strategy]:
    skipalign = [
        SkipAlign(max_position=max_position, skip_at=skip_at, law=law, cuts_within=within, **ALWAYS)
        for skip_at, law, within in product(
            [("inner",), ("outer",), ("all",), ("token",), ("inner", "outer"), ("none",)],
            LAWS,
            [0, 3],
        )
    ]
    return [
        Contiguous(),
        RandPos(max_position=max_position),
        *(PoSE(max_position=max_position, num_chunks=chunks) for chunks in (2, 3, 8)),
        *skipalign,
    ]


def test_drawings_in_docstrings_are_what_the_code_draws():
    result = doctest.testmod(positions)
    assert result.attempted >= 8
    assert result.failed == 0


def test_registry_holds_every_strategy_by_its_name():
    assert set(STRATEGIES) == {"contiguous", "skipalign", "pose", "randpos"}
    assert set(KEY_BIASES) == {"gap", "permuted", "noise"}


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    spare=st.sampled_from([0, 1, 7, 1000, 100_000]),
    seed=st.integers(0, 2**32),
)
def test_ids_rise_strictly_and_stay_in_range(lengths: list[int], spare: int, seed: int):
    segments = conversation(lengths)
    num_tokens = segments[-1].stop
    breaks = tokens_within(segments)[::5]
    for strategy in every_strategy(num_tokens + spare):
        ids = strategy.positions(segments, sample_rng(seed, 0, "x"), breaks)
        assert ids.dtype == np.int64
        assert len(ids) == num_tokens
        assert np.all(np.diff(ids) >= 1)
        assert ids[-1] < num_tokens + spare
        assert ids[0] >= 0 if isinstance(strategy, RandPos) else ids[0] == 0
        again = strategy.positions(segments, sample_rng(seed, 0, "x"), breaks)
        assert np.array_equal(ids, again)
        if spare == 0:
            assert np.array_equal(ids, np.arange(num_tokens))


def test_hundreds_of_segments():
    segments = conversation([3] * 700)
    for strategy in every_strategy(50_000):
        ids = strategy.positions(segments, sample_rng(0, 0, "long"), tokens_within(segments))
        assert np.all(np.diff(ids) >= 1)
        assert ids[-1] < 50_000


@pytest.mark.parametrize("name", ["skipalign", "pose", "randpos"])
def test_a_sample_longer_than_the_range_is_refused_with_both_numbers(name: str):
    with pytest.raises(DataError, match=r"8 tokens.*max_position 7"):
        STRATEGIES[name](max_position=7).positions(EIGHT_TOKENS, sample_rng(0, 0, "a"))


@pytest.mark.parametrize("skip_at", ["inner", "outer", "all"])
def test_skipalign_skips_at_its_borders_only(skip_at: str):
    segments = (Segment(0, 4, "system", 1, 3), *_shifted(conversation([9, 5, 8, 6], header=2), 4))
    expected = {"inner": {1, 3}, "outer": {2}, "all": {0, 1, 2, 3}}[skip_at]
    # A border's index counts segments after the system text.
    borders = {segments[index + 1].start for index in expected}
    seen: set[int] = set()
    strategy = SkipAlign(max_position=5000, skip_at=(skip_at,), **ALWAYS)
    for sample in range(200):
        ids = strategy.positions(segments, sample_rng(0, 0, str(sample)))
        seen |= set((np.flatnonzero(np.diff(ids) > 1) + 1).tolist())
    assert seen == borders


def _shifted(segments: tuple[Segment, ...], by: int) -> tuple[Segment, ...]:
    return tuple(
        Segment(s.start + by, s.stop + by, s.role, s.content_start + by, s.content_stop + by)
        for s in segments
    )


def test_swapping_two_segments_changes_where_skips_fall():
    user, assistant = conversation([9, 5])
    swapped = (
        Segment(0, 5, "assistant", 0, 5),
        Segment(5, 14, "user", 5, 14),
    )
    assert block_borders((user, assistant), ["inner"]).tolist() == [9]
    assert block_borders(swapped, ["inner"]).tolist() == []
    assert block_borders(swapped, ["outer"]).tolist() == [5]


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
    for sample in range(200):
        ids = strategy.positions(segments, sample_rng(1, 0, str(sample)), np.array([30, 35]))
        for skip in np.flatnonzero(np.diff(ids) > 1) + 1:
            home = next(s for s in segments if s.start <= skip < s.stop)
            assert home.content_start < skip < home.content_stop


def test_cuts_within_prefer_sentences_and_fill_up_with_tokens():
    segments = conversation([100, 20])
    breaks = np.array([10, 20, 30])
    counts = {"enough": 3, "too few": 5}
    for name, cuts in counts.items():
        strategy = SkipAlign(max_position=10**6, skip_at=("none",), cuts_within=cuts, **ALWAYS)
        ids = strategy.positions(segments, sample_rng(0, 0, name), breaks)
        found = set((np.flatnonzero(np.diff(ids) > 1) + 1).tolist())
        assert {10, 20, 30} <= found
        assert len(found) == cuts


def test_skip_fraction_is_the_share_of_samples_that_skip():
    strategy = SkipAlign(max_position=100_000, skip_fraction=0.3)
    skipped = [
        strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, str(sample)))[-1] > 7
        for sample in range(3000)
    ]
    assert abs(np.mean(skipped) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 3000)


@pytest.mark.parametrize(("total", "parts"), [(4, 3), (6, 2), (3, 4)])
def test_divide_makes_every_division_equally_likely(total: int, parts: int):
    cells = [c for c in product(range(total + 1), repeat=parts) if sum(c) == total]
    rng = np.random.default_rng(7)
    draws = 400 * len(cells)
    counts = dict.fromkeys(cells, 0)
    for _ in range(draws):
        counts[tuple(divide(total, parts, rng).tolist())] += 1
    chi_square = sum((count - 400) ** 2 / 400 for count in counts.values())
    # Mean of chi-square is its degrees of freedom, its variance twice that: six deviations.
    freedom = len(cells) - 1
    assert chi_square < freedom + 6 * np.sqrt(2 * freedom)


def test_laws_against_their_means():
    rng = np.random.default_rng(3)
    draws = {
        name: np.array([law.gaps(1000, 3, rng) for _ in range(4000)]) for name, law in LAWS.items()
    }
    means = {name: gaps.mean(axis=0) for name, gaps in draws.items()}
    assert np.allclose(means["stars_and_bars"], 1000 / 6, rtol=0.06)
    assert np.allclose(means["one_border"], 1000 / 6, rtol=0.1)
    assert np.allclose(means["sequential"], [500, 250, 125], rtol=0.06)
    assert np.allclose(means["whole_budget"], 1000 / 3, rtol=0.04)
    assert np.all(draws["whole_budget"].sum(axis=1) == 1000)
    assert np.all((draws["one_border"] > 0).sum(axis=1) <= 1)
    assert all(np.all(gaps.sum(axis=1) <= 1000) for gaps in draws.values())


def test_pose_follows_the_published_law():
    pose, num_tokens, top = PoSE(max_position=108), 8, 100
    rows = np.array(
        [pose.positions(EIGHT_TOKENS, sample_rng(0, 0, str(sample))) for sample in range(6000)]
    )
    bias = rows[:, -1] - (num_tokens - 1)
    assert bias.min() == 0
    assert bias.max() == top
    assert abs(bias.mean() - top / 2) < 6 * top / np.sqrt(12 * len(bias))
    first_chunk = np.argmax(np.diff(rows, axis=1) > 1, axis=1) + 1
    lengths = np.bincount(first_chunk[bias > 0], minlength=5)
    # The first chunk is uniform in {1..(T + 1) // 2} = {1..4}.
    assert lengths[0] == 0
    assert len(lengths) == 5
    assert np.allclose(lengths[1:] / lengths.sum(), 0.25, atol=0.03)


def test_randpos_covers_the_range_evenly():
    strategy = RandPos(max_position=80)
    counts = np.zeros(80)
    for sample in range(4000):
        counts[strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, str(sample)))] += 1
    assert np.allclose(counts / counts.sum(), 1 / 80, rtol=0.2)


RECORDED = {
    "skipalign all": [0, 1, 2, 9, 10, 11, 95, 96],
    "skipalign token": [0, 7, 25, 26, 41, 44, 45, 96],
    "pose 2": [0, 1, 2, 3, 11, 12, 13, 14],
    "pose 3": [0, 40, 41, 42, 43, 44, 69, 70],
    "randpos": [5, 7, 25, 40, 43, 58, 59, 89],
}


def recorded_strategies() -> dict[str, positions.Strategy]:
    return {
        "skipalign all": SkipAlign(max_position=100, **ALWAYS),
        "skipalign token": SkipAlign(max_position=100, skip_at=("token",), **ALWAYS),
        "pose 2": PoSE(max_position=100),
        "pose 3": PoSE(max_position=100, num_chunks=3),
        "randpos": RandPos(max_position=100),
    }


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_draws(name: str):
    """A change of these arrays changes every published run: it needs a changelog entry."""
    strategy = recorded_strategies()[name]
    assert strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "b")).tolist() == RECORDED[name]


def test_draws_depend_on_seed_epoch_and_sample_alone():
    strategy = SkipAlign(max_position=100_000, **ALWAYS)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "a"))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(first, strategy.positions(EIGHT_TOKENS, sample_rng(0, 0, "a")))
    others = [sample_rng(1, 0, "a"), sample_rng(0, 1, "a"), sample_rng(0, 0, "b")]
    for rng in others:
        assert not np.array_equal(first, strategy.positions(EIGHT_TOKENS, rng))


def test_runs_are_the_runs_of_consecutive_ids():
    starts, stops = runs(np.array([3, 4, 5, 9, 20, 21]))
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(0, 3), (3, 4), (4, 6)]


def test_gap_bias_of_weight_n_is_the_key_repeated_n_times():
    """Pins the meaning of the bias by plain attention in float64."""
    ids = np.array([0, 1, 6, 7, 8])  # a run of 2 with a gap of 4 behind it: weight 3; then 3 of 1
    bias = GapBias().values(ids, EIGHT_TOKENS, sample_rng(0, 0, "a")).astype(np.float64)
    assert np.allclose(np.exp(bias), [3, 3, 1, 1, 1])
    rng = np.random.default_rng(0)
    logits, values = rng.standard_normal(5), rng.standard_normal((5, 4))
    biased = np.exp(logits + bias)
    repeats = [3, 3, 1, 1, 1]
    repeated = np.exp(np.repeat(logits, repeats))
    expected = repeated @ np.repeat(values, repeats, axis=0) / repeated.sum()
    # float32 carries log(3) to 1e-7.
    assert np.allclose(biased @ values / biased.sum(), expected, atol=1e-7)


def test_biases_are_zero_or_constant_without_skips():
    ids = np.arange(8)
    for bias in (GapBias(), PermutedBias(), NoiseBias(std=2.0)):
        values = bias.values(ids, EIGHT_TOKENS, sample_rng(0, 0, "a"))
        assert values.dtype == np.float32
        assert np.ptp(values) == 0
    assert not GapBias().values(ids, EIGHT_TOKENS, sample_rng(0, 0, "a")).any()


def test_permuted_bias_holds_the_values_of_gap_bias_by_run():
    ids = np.array([0, 5, 6, 20, 21, 22, 90, 91])
    gap = GapBias().values(ids, EIGHT_TOKENS, sample_rng(0, 0, "a"))
    starts, stops = runs(ids)
    orders = set()
    for sample in range(40):
        permuted = PermutedBias().values(ids, EIGHT_TOKENS, sample_rng(0, 0, str(sample)))
        per_run = [permuted[start] for start in starts]
        assert sorted(per_run) == pytest.approx(sorted(gap[starts]))
        assert all(np.ptp(permuted[a:b]) == 0 for a, b in zip(starts, stops, strict=True))
        orders.add(tuple(per_run))
    assert len(orders) > 5


def test_noise_bias_has_its_standard_deviation():
    ids = np.arange(0, 16, 2)
    draws = np.concatenate(
        [
            NoiseBias(std=0.7).values(ids, EIGHT_TOKENS, sample_rng(0, 0, str(sample)))
            for sample in range(1000)
        ]
    )
    assert abs(draws.std() - 0.7) < 0.03


def test_bias_can_spare_the_first_token_the_template_and_be_capped():
    segments = tuple(Segment(s.start, s.stop, s.role, s.start + 1, s.stop) for s in EIGHT_TOKENS)
    ids = np.array([0, 1, 2, 41, 42, 43, 96, 97])
    rng = sample_rng(0, 0, "a")
    full = GapBias().values(ids, segments, rng)
    assert GapBias(cap=1.5).values(ids, segments, rng).max() == 1.5
    first = GapBias(keep_first_zero=True).values(ids, segments, rng)
    assert first[0] == 0
    assert np.array_equal(first[1:], full[1:])
    spared = GapBias(keep_template_zero=True).values(ids, segments, rng)
    headers = [segment.start for segment in segments]
    assert not spared[headers].any()
    others = np.setdiff1d(np.arange(8), headers)
    assert np.array_equal(spared[others], full[others])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipAlign(max_position=0), "max_position is 0"),
        (lambda: SkipAlign(max_position=9, skip_fraction=1.5), "skip_fraction is 1.5"),
        (lambda: SkipAlign(max_position=9, skip_at=("inside",)), "'inside'; it takes inner"),
        (lambda: SkipAlign(max_position=9, law="gauss"), "'gauss'; it takes stars_and_bars"),
        (lambda: SkipAlign(max_position=9, cuts_within=-1), "cuts_within is -1"),
        (lambda: PoSE(max_position=9, num_chunks=1), "num_chunks is 1"),
        (lambda: GapBias(cap=0.0), "cap is 0"),
        (lambda: NoiseBias(std=-1.0), "std is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object, message: str):
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        make()  # type: ignore[operator]


def test_segments_of_the_drawing_are_gapless():
    assert all(before.stop == after.start for before, after in pairwise(EIGHT_TOKENS))
