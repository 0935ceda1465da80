"""metrics.py: intervals against known values and closed forms; when an answer is right."""

import math

import numpy as np
import pytest

from skipalign.evaluation.metrics import (
    bootstrap_nested,
    bootstrap_within,
    contains_value,
    paired_bootstrap,
    share,
    share_of_groups,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_has_the_published_values(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_its_equation():
    low, high = wilson_interval(7, 31, level=0.9)
    for bound in (low, high):  # |share - p| = z sqrt(p (1 - p) / n)
        assert abs(7 / 31 - bound) == pytest.approx(1.6448536 * math.sqrt(bound * (1 - bound) / 31))
    mirrored = wilson_interval(24, 31, level=0.9)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_wilson_interval_refuses_what_is_no_share(correct, n, level):
    with pytest.raises(ValueError, match=rf"{correct} correct of {n}"):
        wilson_interval(correct, n, level)


def test_share_carries_its_interval():
    low, high = wilson_interval(3, 4)
    assert share(3, 4) == {"n": 4, "correct": 3, "mean": 0.75, "low": low, "high": high}


def rng():
    return np.random.default_rng(0)


def test_bootstrap_of_one_group_has_the_binomial_quantiles():
    n, correct = 40, 28
    groups = [[1.0] * correct + [0.0] * (n - correct)]
    weights = [math.comb(n, k) * 0.7**k * 0.3 ** (n - k) for k in range(n + 1)]
    below = np.cumsum(weights)
    exact = [int(np.searchsorted(below, tail)) / n for tail in (0.025, 0.975)]
    assert bootstrap_nested(groups, rng(), num_resamples=20000) == pytest.approx(exact, abs=0.013)


def test_bootstrap_draws_groups_before_trials():
    # Three groups without spread inside: the mean is a draw of three from {0, 0.3, 0.9}.
    groups = [[0.0] * 50, [0.3] * 5, [0.9]]
    assert bootstrap_nested(groups, rng()) == pytest.approx((0.0, 0.9))
    low, high = bootstrap_nested(groups, rng(), num_resamples=20000, level=0.8)
    # P(mean = 0) = 1/27, P(mean <= 0.1) = 4/27; above: P(0.9) = 1/27, P(>= 0.7) = 4/27
    assert (low, high) == pytest.approx((0.1, 0.7))


def test_bootstrap_weighs_groups_alike_whatever_their_size():
    groups = [[1.0] * 1000, [0.0]]
    low, high = bootstrap_nested(groups, rng(), num_resamples=4000, level=0.4)
    assert (low, high) == pytest.approx((0.5, 0.5))


def test_bootstrap_draws_trials_anew_for_a_group_drawn_twice():
    # Variance of the mean: (between / G) + (within / n) * E[1 / distinct...]; here between = 0,
    # two draws of one group are independent, so the variance is within / (n * G).
    group = [0.0, 1.0] * 8
    resamples = [
        bootstrap_nested([group, group], np.random.default_rng(seed), num_resamples=1, level=0.5)[0]
        for seed in range(4000)
    ]
    assert np.var(resamples) == pytest.approx(0.25 / 16 / 2, rel=0.1)


def test_answers_about_one_text_count_less_than_answers_of_their_own():
    alike = [[1.0] * 10, [0.0] * 10, [1.0] * 10]
    assert share_of_groups(alike) == {**share(20, 30), "low": 0.0, "high": 1.0}
    apart = [[1.0, 0.0]] * 50
    assert share_of_groups(apart)["low"] <= wilson_interval(50, 100)[0]
    assert share_of_groups(apart)["low"] == pytest.approx(0.4, abs=0.02)
    # Where all are right the bootstrap has no width, and Wilson's interval stands.
    assert share_of_groups([[1.0] * 4] * 3) == share(12, 12)


def test_bootstrap_is_a_function_of_its_rng():
    groups = [[0.0, 1.0, 1.0], [1.0, 0.0]]
    assert bootstrap_nested(groups, rng()) == bootstrap_nested(groups, rng())
    one, other = (
        bootstrap_nested(groups, np.random.default_rng(s), num_resamples=9) for s in (1, 7)
    )
    assert one != other


@pytest.mark.parametrize("groups", [[], [[1.0], []]])
def test_bootstrap_needs_trials(groups):
    with pytest.raises(ValueError, match="at least one group"):
        bootstrap_nested(groups, rng())


def test_bootstrap_within_groups_draws_no_groups():
    constant = bootstrap_within([[0.0] * 5, [1.0] * 7], np.random.default_rng(0))
    assert constant == (0.5, 0.5)
    # The mean of two shares of 50 trials each: a standard error of 0.05 by the binomial law.
    halves = [[0.0, 1.0] * 25, [0.0, 1.0] * 25]
    low, high = bootstrap_within(halves, np.random.default_rng(0), num_resamples=20000)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.011)
    # Groups weigh alike whatever their size.
    low, high = bootstrap_within([[0.0] * 3, [0.0, 1.0] * 50], np.random.default_rng(0))
    assert (low, high) == pytest.approx((0.25 - 0.049, 0.25 + 0.049), abs=0.011)
    for groups in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one group"):
            bootstrap_within(groups, np.random.default_rng(0))


def test_paired_bootstrap_of_one_pair_has_the_quantiles_worked_out_by_hand():
    # Differences 1, 0, 0, -1: four draws add up to the heads of eight coins less 4. The mean is
    # -1 with 1/256 (0.4%), at most -3/4 with 9/256 (3.5%), at most -1/2 with 37/256 (14.5%).
    pair = ([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0])
    for level, end in ((0.995, 1.0), (0.95, 0.75), (0.9, 0.5)):
        found = paired_bootstrap([pair], rng(), num_resamples=20000, level=level)
        assert found == (-end, end)


def test_paired_bootstrap_takes_a_trial_with_both_its_outcomes():
    # Both are right on the same half of the trials: apart each share varies, the difference not.
    outcomes = [0.0, 1.0] * 20
    assert paired_bootstrap([(outcomes, outcomes)], rng()) == (0.0, 0.0)
    low, high = paired_bootstrap([(outcomes, outcomes[::-1])], rng())
    assert (low, high) == pytest.approx((-0.3, 0.3), abs=0.051)  # sd is 1 / sqrt(40)


def test_paired_bootstrap_draws_groups_before_trials():
    pairs = [([0.0] * 9, [0.0] * 9), ([0.3] * 5, [0.0] * 5), ([1.0], [0.1])]
    assert paired_bootstrap(pairs, rng()) == pytest.approx((0.0, 0.9))
    low, high = paired_bootstrap(pairs, rng(), num_resamples=20000, level=0.8)
    assert (low, high) == pytest.approx((0.1, 0.7))  # as worked out for bootstrap_nested above


@pytest.mark.parametrize("num_values", [3, 200])
def test_tallies_and_single_draws_follow_one_law(num_values):
    # The variance of a mean of n draws is that of the values over n, however they are drawn.
    values = np.linspace(-1, 1, num_values).repeat(600 // num_values)
    nothing = np.zeros(len(values))
    ends = [
        paired_bootstrap([(values, nothing)], np.random.default_rng(seed), num_resamples=1)[0]
        for seed in range(3000)
    ]
    assert np.var(ends) == pytest.approx(values.var() / len(values), rel=0.1)


def test_paired_interval_holds_the_true_difference_about_as_often_as_it_says():
    # 8 seeds whose true gains scatter around 0.2, 40 trials each, shared difficulty of a prompt.
    draws = rng()
    held = 0
    for _ in range(300):
        gains = draws.normal(0.2, 0.1, size=(8, 1))
        luck = draws.uniform(size=(8, 40))
        first, second = luck < 0.4 + gains, luck < 0.4
        low, high = paired_bootstrap(
            list(zip(first.astype(float), second.astype(float), strict=True)),
            draws,
            num_resamples=400,
        )
        held += low <= 0.2 <= high
    assert 0.86 <= held / 300 <= 0.99


def test_paired_bootstrap_is_a_function_of_its_rng():
    pairs = [([0.0, 1.0, 1.0], [1.0, 1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0])]
    assert paired_bootstrap(pairs, rng()) == paired_bootstrap(pairs, rng())


@pytest.mark.parametrize("pairs", [[], [([1.0], [1.0]), ([], [])], [([1.0, 0.0], [1.0])]])
def test_paired_bootstrap_needs_trials_that_both_answered(pairs):
    with pytest.raises(ValueError, match="as many trials on one side"):
        paired_bootstrap(pairs, rng())


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("47", "47"),
        ("The secret number of Oslo is 47.", "47"),
        ("(47)", "47"),
        ("I saw 1470, then 47!", "47"),
        ("It is 1,234,567.", "1234567"),
        ("数字是1234567。", "1234567"),
        ("１２３", "123"),
        ("The word is amber-coloured: Amber", "amber"),
        ("AMBER", "amber"),
        ("blue fox", "blue fox"),
        ("aa", "aa"),
        ("21 1 1", "1 1"),
        ("4-7", "4-7"),
    ],
)
def test_a_value_that_stands_in_the_answer(answer, value):
    assert contains_value(answer, value)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("1470", "47"),
        ("147", "47"),
        ("47th", "47"),
        ("x47", "47"),
        ("_47", "47"),
        ("47,000", "47"),
        ("47.5 or 0.47", "47"),
        ("1,234,567", "567"),
        ("ambers", "amber"),
        ("naïveté", "naïve"),
        ("bluefox", "blue fox"),
        ("aaa", "aa"),
        ("", "47"),
        ("anything", ""),
    ],
)
def test_a_value_that_does_not(answer, value):
    assert not contains_value(answer, value)
