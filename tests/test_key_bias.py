"""Key biases: what they mean, what they spare, and how they are spread."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

from skipalign import key_bias
from skipalign.encoding import IGNORE_INDEX, Segment
from skipalign.errors import RecipeError
from skipalign.key_bias import KEY_BIASES, GapBias, NoiseBias, PermutedBias, runs
from skipalign.positions import EIGHT_TOKENS, sample_rng


def test_drawings_in_docstrings_are_what_the_code_draws():
    result = doctest.testmod(key_bias)
    assert result.attempted >= 4
    assert result.failed == 0


def test_registry_holds_every_key_bias_by_its_name():
    assert set(KEY_BIASES) == {"gap", "permuted", "noise"}


def test_runs_are_the_runs_of_consecutive_ids():
    starts, stops = runs(np.array([3, 4, 5, 9, 20, 21]))
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(0, 3), (3, 4), (4, 6)]


def test_gap_bias_of_weight_n_is_the_key_repeated_n_times():
    """Pins the meaning of the bias by plain attention in float64."""
    ids = np.array([0, 1, 6, 7, 8])  # a run of 2 with a gap of 4 behind it: weight 3; then 3 of 1
    bias = GapBias().values(EIGHT_TOKENS, ids, sample_rng(0, 0, "a")).astype(np.float64)
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
        values = bias.values(EIGHT_TOKENS, ids, sample_rng(0, 0, "a"))
        assert values.dtype == np.float32
        assert np.ptp(values) == 0
    assert not GapBias().values(EIGHT_TOKENS, ids, sample_rng(0, 0, "a")).any()


def test_permuted_bias_holds_the_values_of_gap_bias_by_run():
    ids = np.array([0, 5, 6, 20, 21, 22, 90, 91])
    gap = GapBias().values(EIGHT_TOKENS, ids, sample_rng(0, 0, "a"))
    starts, stops = runs(ids)
    orders = set()
    for sample in range(40):
        permuted = PermutedBias().values(EIGHT_TOKENS, ids, sample_rng(0, 0, str(sample)))
        per_run = [permuted[start] for start in starts]
        assert sorted(per_run) == pytest.approx(sorted(gap[starts]))
        assert all(np.ptp(permuted[a:b]) == 0 for a, b in zip(starts, stops, strict=True))
        orders.add(tuple(per_run))
    assert len(orders) > 5


def test_noise_bias_has_its_standard_deviation():
    ids = np.arange(0, 16, 2)
    draws = np.concatenate(
        [
            NoiseBias(std=0.7).values(EIGHT_TOKENS, ids, sample_rng(0, 0, str(sample)))
            for sample in range(1000)
        ]
    )
    assert abs(draws.std() - 0.7) < 0.03


def test_noise_of_every_key_is_a_draw_of_its_own():
    ids = np.array([0, 1, 2, 3, 4, 5, 70, 71])
    rng = sample_rng(0, 0, "a")
    assert len(set(NoiseBias(per="key").values(EIGHT_TOKENS, ids, rng))) == 8
    assert len(set(NoiseBias().values(EIGHT_TOKENS, ids, rng))) == 2
    natural = NoiseBias(per="key").values(EIGHT_TOKENS, np.arange(8), rng)
    assert np.ptp(natural) > 0, "noise of keys does not need skips"


def test_bias_can_spare_the_runs_that_hold_the_answer():
    words = np.array([1, 20, 1, 30, 40, 1, 20, 50])  # 1: headers; the answer says 20 and 50
    segments = (Segment(0, 2, "user", 1, 2), Segment(2, 5, "user", 3, 5))
    segments += (Segment(5, 8, "assistant", 6, 8),)
    labels = np.array([IGNORE_INDEX] * 5 + [1, 20, 50])  # the header is trained as well
    example = replace(EIGHT_TOKENS, input_ids=words, labels=labels, segments=segments)
    ids = np.array([0, 1, 10, 11, 30, 50, 51, 70])
    full = GapBias().values(example, ids, sample_rng(0, 0, "a"))
    spared = GapBias(keep_answer_zero=True).values(example, ids, sample_rng(0, 0, "a"))
    assert full[:7].all()
    assert not spared[:2].any(), "the run with 20 before the answer"
    assert np.array_equal(spared[2:], full[2:]), "headers and the answer itself are no matches"


def test_bias_can_spare_the_first_token_the_template_and_be_capped():
    segments = tuple(
        Segment(s.start, s.stop, s.role, s.start + 1, s.stop) for s in EIGHT_TOKENS.segments
    )
    example = replace(EIGHT_TOKENS, segments=segments)
    ids = np.array([0, 1, 2, 41, 42, 43, 96, 97])
    rng = sample_rng(0, 0, "a")
    full = GapBias().values(example, ids, rng)
    assert GapBias(cap=1.5).values(example, ids, rng).max() == 1.5
    first = GapBias(keep_first_zero=True).values(example, ids, rng)
    assert first[0] == 0
    assert np.array_equal(first[1:], full[1:])
    spared = GapBias(keep_template_zero=True).values(example, ids, rng)
    headers = [segment.start for segment in segments]
    assert not spared[headers].any()
    others = np.setdiff1d(np.arange(8), headers)
    assert np.array_equal(spared[others], full[others])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GapBias(cap=0.0), "cap is 0"),
        (lambda: NoiseBias(per="head"), "per is 'head'"),  # type: ignore[arg-type]
        (lambda: NoiseBias(std=-1.0), "std is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object, message: str):
    with pytest.raises(RecipeError, match=message):
        make()  # type: ignore[operator]
